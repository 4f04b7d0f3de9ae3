"""What the API does while Redis is frozen, or the database is locked."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.api_server import Api, error_of, serving, settings_for
from support.servers import RedisServer

from app.db import connect

PROMPT = {"prompt": "x"}


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.stop()


@pytest.fixture
def api(tmp_path: Path, own_redis: RedisServer, sqlite_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path, own_redis.url, sqlite_url)) as api:
        yield api


def test_a_run_is_taken_while_redis_is_frozen(api: Api, own_redis: RedisServer, slack: float) -> None:
    """The row is what counts: 201 within seconds, and at most one entry when Redis goes on."""
    own_redis.freeze()
    began = time.monotonic()
    response = api.admin.post("/v1/runs", json=PROMPT)
    assert time.monotonic() - began < 8 * slack
    assert (response.status_code, response.json()["status"]) == (201, "queued")
    assert api.client().get("/readyz").json()["checks"]["redis"] != "ok"
    assert api.client().get("/metrics").status_code == 200
    own_redis.thaw()
    with own_redis.client() as client:
        assert client.llen("jobs:pending") <= 1  # pyright: ignore[reportOperatorIssue]
    run_id = response.json()["run_id"]
    assert api.admin.post(f"/v1/runs/{run_id}/cancel").json()["status"] == "cancelled"


def test_a_locked_database_is_a_503_and_passes(
    tmp_path: Path, own_redis: RedisServer, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was accepted, the client may try again, reading goes on."""
    monkeypatch.setattr(connect, "BUSY_TIMEOUT_S", 0.2)
    with serving(settings_for(tmp_path, own_redis.url, sqlite_url)) as api:
        client = api.admin
        with closing(sqlite3.connect(tmp_path / "tailrun.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            response = client.post("/v1/runs", json=PROMPT)
            assert error_of(response) == (503, "unavailable")
            assert response.headers["Retry-After"] == "1"
            assert client.get("/v1/runs").json()["items"] == []
            other.execute("ROLLBACK")
        assert client.post("/v1/runs", json=PROMPT).status_code == 201
    with own_redis.client() as redis:
        assert redis.llen("jobs:pending") == 1
