"""One row that is not as we write them, from another release or by hand, hides none of the others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from support.api_server import Api, serving, settings_for
from support.run_rows import line
from support.servers import RedisServer

from app.core.clock import format_ts, parse_ts
from app.core.events import Event, EventType
from app.core.models import Fence, RunStatus
from app.db.engine import Database
from app.db.log_retention import LogUpkeep
from app.db.run_store import Batch, Outcome, RunStore
from app.db.schedule_store import ScheduleStore
from app.maintenance.reconciler import Reconciler
from app.maintenance.scheduler import Scheduler
from app.redis.clients import RedisClients
from app.redis.queue import Queue

INT64 = 2**63
POISON: dict[str, dict[str, Any]] = {
    "a time before year 1": {"run_at": -62_135_596_860_000_000, "created_at": -62_135_596_860_000_000},
    "a time after year 9999": {"run_at": 260_000_000_000_000_000, "next_attempt_at": INT64 - 1},
    "the first number": dict.fromkeys(
        ("run_at", "created_at", "queued_at", "started_at", "ended_at", "cancel_requested_at"), -INT64
    ),
    "the last number": dict.fromkeys(
        ("run_at", "created_at", "queued_at", "started_at", "ended_at", "cancel_requested_at"), INT64 - 1
    ),
    "no end of time": {"timeout_s": float("inf")},
    "a time below nothing": {"timeout_s": -1e308},
    "a state of another release": {"status": "paused", "kind": "graph", "priority": "low"},
    "no JSON": {"labels": "{", "spec": "nonsense", "error": "[", "retry_on": "'"},
    "other JSON": {"labels": "[1]", "spec": "7", "error": "true", "retry_on": "{}"},
    "numbers of 5000 digits": {"labels": '{"n": ' + "9" * 5000 + "}", "spec": "9" * 5000},
}


def poison(api: Api, table: str, key: str, row_id: str, values: dict[str, Any]) -> None:
    """Write into a row as nobody of ours would."""
    settings = ", ".join(f"{name} = :{name}" for name in values)
    statement = text(f"UPDATE {table} SET {settings} WHERE {key} = :id")

    async def write() -> int:
        db = Database(api.settings.data.effective_database_url)
        try:
            return await db.write(
                lambda connection: connection.execute(statement, values | {"id": row_id}).rowcount
            )
        finally:
            await db.close()

    assert asyncio.run(write()) == 1


def settings_of(api: Api) -> tuple[Database, RedisClients]:
    settings = api.settings
    return Database(settings.data.effective_database_url), RedisClients(settings.redis.effective_url)


async def look_after(api: Api) -> int:
    """Do once what a worker does beside its runs, and claim what waits; return how many were claimed."""
    db, clients = settings_of(api)
    try:
        runs, queue = RunStore(db), Queue(clients)
        await Reconciler(runs, queue, lambda: parse_ts("2100-01-01T00:00:00Z")).reconcile()
        await Scheduler(ScheduleStore(db), queue, backlog_max=100).fire_due()
        upkeep = LogUpkeep(db)
        for run in await upkeep.ended(None, since=-INT64, before=INT64 - 1, limit=100):
            await upkeep.pack_next(run)
            await upkeep.expire_next(run, 1, archived=False)
        waiting = [run.run_id for run in await runs.open_runs(RunStatus.QUEUED, 100)]
        return len(await runs.claim(waiting, "w1", INT64 - 1))
    finally:
        await clients.close()
        await db.close()


@pytest.mark.parametrize("values", POISON.values(), ids=list(POISON))
def test_a_poisoned_run_hides_no_other(
    tmp_path: Path, redis_server: RedisServer, migrated_url: str, values: dict[str, Any]
) -> None:
    """It is shown itself, beside the others, wherever many are read; and what works on many goes on."""
    settings = settings_for(tmp_path, redis_server.url, migrated_url)
    with serving(settings, migrated=False) as api:
        client = api.user("ann")
        ids = [client.post("/v1/runs", json={"argv": ["true"]}).json()["run_id"] for _ in range(3)]
        poison(api, "runs", "run_id", ids[1], values)
        for path in ("/v1/runs", "/v1/runs?limit=1", *(f"/v1/runs/{run_id}?logs=5" for run_id in ids)):
            assert client.get(path).status_code == 200, path
        assert {run["run_id"] for run in client.get("/v1/runs").json()["items"]} == set(ids)
        for path in ("/v1/runs?all=1", "/v1/queue", "/metrics", "/v1/dead"):
            assert api.admin.get(path).status_code == 200, path
        seen: list[str] = []
        cursor = ""
        while cursor is not None:
            page = client.get("/v1/runs", params={"limit": 1} | ({"cursor": cursor} if cursor else {})).json()
            seen += [run["run_id"] for run in page["items"]]
            cursor = page["next"]
        assert sorted(seen) == sorted(ids)
        assert asyncio.run(look_after(api)) >= 2
        for action in ("cancel", "start", "retry"):
            assert client.post(f"/v1/runs/{ids[1]}/{action}").status_code < 500


@pytest.mark.parametrize(
    "values",
    [
        {"next_at": -INT64, "last_at": INT64 - 1, "created_at": -INT64},
        {"run": "nonsense", "next_at": 1},
        {"run": "[]", "next_at": 1},
        {"cron": "no cron", "next_at": 1},
        {"timezone": "Nowhere/" * 50, "next_at": 1},
        {"run": '{"kind": "graph", "priority": 7}', "next_at": 1},
    ],
)
def test_a_poisoned_schedule_hides_no_other(
    tmp_path: Path, redis_server: RedisServer, migrated_url: str, values: dict[str, Any]
) -> None:
    """The others are listed, and make their runs."""
    settings = settings_for(tmp_path, redis_server.url, migrated_url)
    with serving(settings, migrated=False) as api:
        client = api.user("ann")
        body = {"cron": "0 * * * *", "run": {"argv": ["true"]}}
        ids = [client.post("/v1/schedules", json=body).json()["schedule_id"] for _ in range(2)]
        poison(api, "schedules", "schedule_id", ids[0], values)
        poison(api, "schedules", "schedule_id", ids[1], {"next_at": 2})
        assert len(client.get("/v1/schedules").json()["items"]) == 2
        assert client.get(f"/v1/schedules/{ids[0]}").status_code == 200
        asyncio.run(look_after(api))
        assert client.get(f"/v1/schedules/{ids[1]}").json()["last_run_id"] is not None


def test_a_poisoned_line_hides_no_other(tmp_path: Path, redis_server: RedisServer, migrated_url: str) -> None:
    """Words that are none of ours, a time that is none, data that is no JSON: the log is read and packed."""
    settings = settings_for(tmp_path, redis_server.url, migrated_url)
    with serving(settings, migrated=False) as api:
        client = api.user("ann")
        run_id = client.post("/v1/runs", json={"argv": ["true"], "start": False}).json()["run_id"]
        rows = [line(run_id, seq) for seq in range(2, 300)]

        async def write(runs: RunStore) -> None:
            seen = await runs.get(run_id)
            assert seen
            assert await runs.take_over(seen, "w1", 5)
            end = Event(300, EventType.END, 6, run_id, 1, data={"status": "succeeded"})
            batch = Batch(events=[*rows, end], outcome=Outcome(RunStatus.SUCCEEDED, exit_code=0))
            await runs.commit(Fence(run_id, 1, "w1"), 1, batch)

        api.store(write)
        bad = {"type": "chart", "level": "loud", "stream": "radio", "ts": INT64 - 1, "data": "{"}
        poison(api, "log_lines", "seq = 5 AND run_id", run_id, bad)
        for _ in range(2):
            assert len(client.get(f"/v1/runs/{run_id}/logs").json()["events"]) >= 299
            for form in ("sse", "ndjson", "text"):
                assert client.get(f"/v1/runs/{run_id}/stream?follow=0&format={form}").status_code == 200
            db = Database(api.settings.data.effective_database_url)

            async def pack(db: Database = db) -> None:
                upkeep = LogUpkeep(db)
                for run in await upkeep.ended(None, since=0, before=INT64 - 1, limit=9):
                    while await upkeep.pack_next(run):
                        pass
                await db.close()

            asyncio.run(pack())


def test_every_number_can_be_shown_as_a_time() -> None:
    """Four digits for the year, as RFC 3339 wants them; what lies outside shows as the nearest moment."""
    assert format_ts(-INT64) == "0001-01-01T00:00:00.000000Z"
    assert format_ts(-62_135_596_800_000_000 + 1) == "0001-01-01T00:00:00.000001Z"
    assert format_ts(INT64 - 1) == "9999-12-31T23:59:59.999999Z"
    assert format_ts(10**30) == "9999-12-31T23:59:59.999999Z"
    assert parse_ts(format_ts(INT64)) > 0


@pytest.mark.parametrize(
    "moment",
    [
        "0001-01-01T00:00:00+00:01",
        "0001-01-01T00:00:00+23:59",
        "0000-01-01T00:00:00Z",
        "9999-12-31T23:59:59-00:01",
        "9999-12-31T23:59:60Z",
    ],
)
def test_a_time_that_cannot_be_shown_is_refused(moment: str, api: Api) -> None:
    """422, and no row."""
    answer = api.admin.post("/v1/runs", json={"argv": ["true"], "run_at": moment})
    assert answer.status_code == 422
    assert "run_at" in answer.json()["error"]["message"]


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> Any:
    with serving(settings_for(tmp_path, redis_server.url, sqlite_url)) as api:
        yield api
