"""A run with a time: it waits in `jobs:delayed`, is cancelled there, and comes when it is due."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from support.api_server import Api, error_of, serving, settings_for
from support.run_rows import NOW, new_run
from support.servers import RedisServer

from app.core.clock import format_ts, parse_ts
from app.core.models import RunStatus
from app.db.engine import Database
from app.db.run_store import RunStore
from app.redis.clients import RedisClients
from app.redis.lease import Ticks
from app.redis.queue import Queue

PROMPT = {"prompt": "x", "planner": "smoke"}
HOUR_US = 3_600_000_000


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, database_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path, redis_server.url, database_url)) as api:
        yield api


def in_an_hour() -> str:
    return format_ts(time.time_ns() // 1000 + HOUR_US)


def test_it_waits_for_its_time(api: Api, redis_server: RedisServer) -> None:
    """Queued, with `next_attempt_at`; its entry stands in `jobs:delayed` by its time, none in pending."""
    at = in_an_hour()
    run = api.admin.post("/v1/runs", json={**PROMPT, "run_at": at, "priority": "high"}).json()
    assert (run["status"], run["run_at"], run["next_attempt_at"]) == ("queued", at, at)
    with redis_server.client() as client:
        assert client.llen("jobs:pending") == 0
        [(entry, score)] = client.zrange("jobs:delayed", 0, -1, withscores=True)
    assert (orjson.loads(entry)["run_id"], orjson.loads(entry)["priority"]) == (run["run_id"], "high")
    assert score == -(-parse_ts(at) // 1000)


def test_a_time_that_is_past_is_now(api: Api, redis_server: RedisServer) -> None:
    run = api.admin.post("/v1/runs", json={**PROMPT, "run_at": "2020-01-01T00:00:00+02:00"}).json()
    assert (run["run_at"], run["next_attempt_at"]) == ("2019-12-31T22:00:00.000000Z", None)
    with redis_server.client() as client:
        assert (client.llen("jobs:pending"), client.zcard("jobs:delayed")) == (1, 0)


def test_a_held_run_waits_for_its_time_once_it_is_started(api: Api, redis_server: RedisServer) -> None:
    at = in_an_hour()
    run = api.admin.post("/v1/runs", json={**PROMPT, "run_at": at, "start": False}).json()
    assert (run["status"], run["next_attempt_at"]) == ("created", None)
    assert api.admin.post(f"/v1/runs/{run['run_id']}/start").json()["next_attempt_at"] == at
    with redis_server.client() as client:
        assert (client.llen("jobs:pending"), client.zcard("jobs:delayed")) == (0, 1)


def test_a_cancel_takes_it_out_of_redis(api: Api, redis_server: RedisServer) -> None:
    run = api.admin.post("/v1/runs", json={**PROMPT, "run_at": in_an_hour()}).json()
    assert api.admin.post(f"/v1/runs/{run['run_id']}/cancel").json()["status"] == "cancelled"
    with redis_server.client() as client:
        assert client.zcard("jobs:delayed") == 0


@pytest.mark.parametrize(
    "run_at",
    ["tomorrow", "2026-11-20", "2026-11-20T12:00:00", "2026-13-20T12:00:00Z", 7, "2999-01-01T00:00:00Z", ""],
)
def test_what_is_no_time_is_refused(api: Api, run_at: object) -> None:
    """A zone is required, and a year is as far as it goes."""
    response = api.admin.post("/v1/runs", json={**PROMPT, "run_at": run_at})
    assert error_of(response) == (422, "invalid")
    assert "run_at" in response.json()["error"]["message"]


async def test_it_is_due_by_redis_time(redis_server: RedisServer, database: Database) -> None:
    """Not a microsecond before the row says so, though entries count in milliseconds."""
    clients = RedisClients(redis_server.url)
    queue, runs, ticks = Queue(clients), RunStore(database), Ticks(clients, 5)
    now = await queue.time_us()
    at = now + 30_500
    created = await runs.create(new_run(run_at=at), now)
    await queue.push_run(created.run, now)
    await queue.push_run(created.run, now)  # repeated after a lost reply: one entry
    while not (await ticks.tick()).due:
        assert await runs.claim([created.run.run_id], "w1", at - 1) == []
    now = await queue.time_us()
    assert now >= at
    [run] = await runs.claim([created.run.run_id], "w1", now)
    assert (run.status, run.run_at) == (RunStatus.RUNNING, at)
    await clients.close()


async def test_the_row_keeps_what_the_run_said(database: Database) -> None:
    runs = RunStore(database)
    created = await runs.create(new_run(retry_on=["exit_nonzero"], run_at=NOW + 5), NOW)
    run = await runs.get(created.run.run_id)
    assert run == created.run
    assert run is not None
    assert (run.retry_on, run.run_at, run.next_attempt_at) == (["exit_nonzero"], NOW + 5, NOW + 5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("retry_on", ["nonsense"]),
        ("retry_on", ["cancelled"]),
        ("retry_on", ["worker_lost"]),
        ("retry_on", "timeout"),
        ("retry_on", [1]),
        ("priority", "urgent"),
        ("priority", 1),
    ],
)
def test_what_is_not_known_is_refused(api: Api, field: str, value: object) -> None:
    response = api.admin.post("/v1/runs", json={**PROMPT, field: value})
    assert error_of(response) == (422, "invalid")
    assert field in response.json()["error"]["message"]
