"""What the API does and says while Redis, the database or the store of files does not do its work."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.api_server import Api, error_of, serving, settings_for
from support.s3_server import S3Server
from support.servers import RedisServer

from app.db import connect
from app.routes.health import OneAtATime

PROMPT = {"prompt": "x", "planner": "smoke"}


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


@pytest.mark.parametrize("key", ["jobs:pending", "jobs:delayed"])
def test_a_queue_that_can_not_be_written_is_not_ready_and_named(
    api: Api, own_redis: RedisServer, key: str
) -> None:
    """Redis answers, and no run could be taken: a key of our name is somebody else's."""
    with own_redis.client() as client:
        client.set(key, "a stranger's")
        answer = api.admin.get("/readyz")
        assert answer.status_code == 503
        assert f"{key} is not Tailrun's" in answer.json()["checks"]["redis"]
        assert api.client().get("/readyz").json()["checks"]["redis"] == "failed"
        status, code = error_of(api.admin.get("/v1/queue"))
        assert (status, code) == (503, "unavailable")
        assert "WRONGTYPE" in api.admin.get("/v1/queue").json()["error"]["message"]
        client.delete(key)
    assert api.admin.get("/readyz").status_code == 200


def test_a_store_of_files_that_is_gone_is_not_ready_and_named(
    tmp_path: Path, own_redis: RedisServer, sqlite_url: str
) -> None:
    """A bucket that somebody deleted: uploads and runs would fail, one by one."""
    with S3Server() as store:
        settings = settings_for(tmp_path, own_redis.url, sqlite_url, **store.settings("gone"))
        with serving(settings) as api:
            assert api.admin.get("/readyz").status_code == 200
            store.delete("gone")
            answer = api.admin.get("/readyz")
            assert answer.status_code == 503
            assert "There is no bucket 'gone'" in answer.json()["checks"]["files"]


async def test_a_store_that_hangs_is_asked_one_question_at_a_time() -> None:
    asked, answered = 0, asyncio.Event()

    async def ask() -> None:
        nonlocal asked
        asked += 1
        await answered.wait()

    check = OneAtATime(ask)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await check()
    answered.set()
    await check()
    assert asked == 1
