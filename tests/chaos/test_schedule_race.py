"""Two real workers at one tick of a schedule: it makes one run, 20 times."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from sqlalchemy import text
from support.stack import Stack, wait_for

from app.core.clock import format_ts, parse_ts
from app.core.errors import StorageError
from app.db.engine import Database

TICKS = 20


@pytest.fixture
def stack(tmp_path: Path, database_url: str) -> Iterator[Stack]:
    stack = Stack(tmp_path, database_url, workers=2)
    yield stack
    stack.close()


@contextmanager
def no_leader(stack: Stack) -> Iterator[None]:
    """Let every worker believe that it leads: the lock is deleted as fast as it is taken."""
    over = threading.Event()

    def delete() -> None:
        with stack.redis.client() as client:
            while not over.is_set():
                with suppress(redis.ConnectionError):
                    client.delete("jobs:leader:scheduler")

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def make_due(stack: Stack, tick: int) -> None:
    async def update() -> None:
        database = Database(stack.database_url)
        statement = text("UPDATE schedules SET next_at = :tick")
        while True:
            try:
                await database.write(lambda connection: connection.execute(statement, {"tick": tick}))
                break
            except StorageError:  # a worker was frozen with SQLite's lock in its hands
                for worker in stack.workers:
                    worker.signal(signal.SIGCONT)
        await database.close()

    anyio.run(update)


def runs(stack: Stack) -> list[dict[str, Any]]:
    return stack.http.get("/v1/runs", params={"limit": 200}).json()["items"]


@pytest.mark.deep
@pytest.mark.timeout(600)
def test_two_workers_race_for_each_tick(stack: Stack) -> None:
    """Both wake from a freeze at the same moment, each believes to be the leader, all ticks are due."""
    body = {"cron": "0 0 1 1 *", "run": {"argv": ["true"]}}
    made = stack.http.post("/v1/schedules", json=body).json()
    first = parse_ts(made["created_at"])
    with no_leader(stack):
        for n in range(TICKS):
            for worker in stack.workers:
                worker.signal(signal.SIGSTOP)
            make_due(stack, first + n)
            for worker in stack.workers:
                worker.signal(signal.SIGCONT)
            wait_for(lambda n=n: len(runs(stack)) > n, f"tick {n}")
    wait_for(lambda: all(run["ended_at"] for run in runs(stack)), "the runs to end")
    assert len(runs(stack)) == TICKS
    assert {run["status"] for run in runs(stack)} == {"succeeded"}
    assert {run["attempt"] for run in runs(stack)} == {1}
    [after] = stack.http.get("/v1/schedules").json()["items"]
    assert (after["last_at"], after["last_error"]) == (format_ts(first + TICKS - 1), None)


@pytest.mark.deep
def test_a_schedule_fires_on_time(stack: Stack) -> None:
    """Within three seconds of its minute, by a worker that nobody told."""
    made = stack.http.post("/v1/schedules", json={"cron": "* * * * *", "run": {"argv": ["true"]}}).json()
    wait_for(lambda: runs(stack), "the minute", timeout_s=120)
    [run] = runs(stack)
    assert 0 <= parse_ts(run["created_at"]) - parse_ts(made["next_at"]) < 3_000_000
    [after] = stack.http.get("/v1/schedules").json()["items"]
    assert (after["last_run_id"], after["last_at"]) == (run["run_id"], made["next_at"])
