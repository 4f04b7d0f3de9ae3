"""The janitor: when it does what, that one worker leads, and that a kill at any moment loses no line."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from support.ended_runs import ended_run, pack_all, plain_lines, read_all
from support.fake_redis import fake_clients
from support.run_rows import NOW
from support.stack import Stack, shell, wait_for
from test_log_upkeep import counts

from app.config import LogSettings
from app.core.errors import Unprocessable
from app.core.events import EventType
from app.core.periodic import Periodic, going_on
from app.db.engine import Database
from app.db.log_retention import LogUpkeep
from app.db.log_store import EXPIRED, LogStore
from app.db.run_store import RunStore
from app.maintenance.log_janitor import Janitor, LogArchiver
from app.redis.clients import RedisClients
from app.redis.lease import Ticks
from app.storage.workspace import Workspaces
from app.stream.history import LogHistory

DAY = 86_400_000_000

PACK = """
import asyncio, sys
from app.db.engine import Database
from app.db.log_retention import LogUpkeep

async def main():
    upkeep = LogUpkeep(Database(sys.argv[1]))
    (run,) = [run for run in await upkeep.ended(None, since=0, before=2**62, limit=9) if run.log_lines > 200]
    while await upkeep.pack_next(run):
        print("packed", flush=True)

asyncio.run(main())
"""


@pytest.fixture
async def clients() -> AsyncIterator[RedisClients]:
    clients = fake_clients()
    yield clients
    await clients.close()


MakeJanitor = Callable[..., Janitor]


@pytest.fixture
def janitor(database: Database, workspaces: Workspaces) -> MakeJanitor:
    def make(
        *, now: int = NOW, days: float = 30, pack_after_s: float = 600, archive: bool = False
    ) -> Janitor:
        return Janitor(
            LogUpkeep(database),
            LogArchiver(LogStore(database), workspaces),
            LogSettings(pack_after_s=pack_after_s, retention_days=days, archive="on" if archive else "off"),
            clock=lambda: now,
        )

    return make


async def test_logs_are_packed_after_a_while_and_expire_after_days(
    janitor: MakeJanitor, database: Database
) -> None:
    large, small = [(await ended_run(database, plain_lines(n))).run_id for n in (500, 50)]
    await janitor(now=NOW + 599_000_000).sweep()
    assert await counts(database, large) == (503, 0)
    await janitor(now=NOW + 601_000_000).sweep()
    assert (await counts(database, large), await counts(database, small)) == ((2, 3), (53, 0))
    await janitor(now=NOW + 30 * DAY - 1_000_000).sweep()
    assert await counts(database, large) == (2, 3)
    await janitor(now=NOW + 400 * DAY, days=0).sweep()
    assert await counts(database, large) == (2, 3)
    await janitor(now=NOW + 30 * DAY + 1_000_000).sweep()
    assert (await counts(database, large), await counts(database, small)) == ((2, 0), (2, 0))
    page = await LogStore(database).page(large, 0, 10)
    assert [event.type for event in page] == [EventType.TRUNCATED, EventType.END]
    assert page[0].data["reason"] == EXPIRED


async def test_a_leader_that_was_replaced_stops_in_the_middle(
    janitor: MakeJanitor, database: Database, clients: RedisClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker leads from the second step on; what it has packed meanwhile is looked at anew."""
    monkeypatch.setattr("app.core.periodic._LEAD_LEAST_S", 0.3)
    run = await ended_run(database, plain_lines(2000))
    mine, ticks = janitor(now=NOW + DAY), Ticks(clients, 5)
    steps, idle = 0, asyncio.Event()
    genuine = mine._upkeep.pack_next

    async def pack_next(item: Any) -> bool:
        nonlocal steps
        steps += 1
        if steps == 2:
            await clients.commands.set(clients.keys.leader("janitor"), "w2")
            await asyncio.Event().wait()
        return await genuine(item)

    mine._upkeep.pack_next = pack_next
    lead = lambda role, ttl_s: ticks.lead(role, "w1", ttl_s)  # noqa: E731
    async with going_on([Periodic("janitor", 0.1, mine.sweep, lead=lead, on_idle=idle.set)]):
        async with asyncio.timeout(30):
            await idle.wait()
    assert steps == 2
    assert await counts(database, run.run_id) == (1804, 1)


async def test_what_was_looked_at_is_not_looked_at_again(janitor: MakeJanitor, database: Database) -> None:
    """A capped log that fits into one chunk stays in rows, and costs nothing at the next sweep."""
    await ended_run(database, plain_lines(500))
    mine = janitor(now=NOW + DAY)
    await mine.sweep()
    looked: list[object] = []
    mine._upkeep.pack_next = looked.append
    await mine.sweep()
    assert looked == []


async def test_logs_that_are_too_small_to_pack_are_read_once(
    janitor: MakeJanitor, database: Database
) -> None:
    """Most runs are, and stay in rows for ever: a sweep must not go through all of them again."""
    for _ in range(3):
        await ended_run(database, plain_lines(3))
    mine, read = janitor(now=NOW + DAY, days=0), list[int]()
    ended = mine._upkeep.ended

    async def noted(*args: Any, **options: Any) -> list[Any]:
        page = await ended(*args, **options)
        read.append(len(page))
        return page

    mine._upkeep.ended = noted
    for _ in range(3):
        await mine.sweep()
    assert read == [3, 0, 0, 0]
    await ended_run(database, plain_lines(3))
    mine._anew_at = 0.0  # an hour later
    await mine.sweep()
    assert read[4:] == [4, 0], "a day back: it may have been committed late"


async def test_archives_are_written_before_logs_expire(
    janitor: MakeJanitor, database: Database, workspaces: Workspaces
) -> None:
    run = await ended_run(database, plain_lines(700))
    logs = LogStore(database)
    before = await read_all(logs, run.run_id)
    await janitor(now=NOW + 31 * DAY, archive=True).sweep()
    assert len(await read_all(logs, run.run_id)) == 2
    history = LogHistory(logs, RunStore(database), workspaces)
    assert await read_all(history, run.run_id) == before  # pyright: ignore[reportArgumentType]


async def test_a_log_that_the_store_refuses_stays(janitor: MakeJanitor, database: Database) -> None:
    """It holds up no other."""
    refused, fine = [(await ended_run(database, plain_lines(20))).run_id for _ in range(2)]
    mine = janitor(now=NOW + 31 * DAY, archive=True)
    genuine = mine._archiver.archive

    async def archive(run: Any) -> bool:
        if run.run_id == refused:
            raise Unprocessable("no")
        return await genuine(run)

    mine._archiver.archive = archive
    await mine.sweep()
    assert (await counts(database, refused), await counts(database, fine)) == ((23, 0), (2, 0))


async def test_a_janitor_killed_at_any_moment_loses_no_line(
    database: Database, migrated_url: str, effort: int
) -> None:
    """SIGKILL, again and again, until the log is packed; it is whole after each."""
    lines, kills = 8_000 * effort, 2 * effort
    run = await ended_run(database, plain_lines(lines))
    logs = LogStore(database)
    before = await read_all(logs, run.run_id)
    for _ in range(kills):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PACK, migrated_url), stdout=subprocess.PIPE
        )
        assert process.stdout
        assert await process.stdout.readline() == b"packed\n"
        await asyncio.sleep(random.uniform(0, 0.02))  # into the middle of any of the next transactions
        process.kill()
        await process.wait()
        assert await read_all(logs, run.run_id) == before
    rows, chunks = await counts(database, run.run_id)
    assert chunks >= kills
    assert rows > 2, "killed each time before it was through"
    await pack_all(LogUpkeep(database), run)
    assert await read_all(logs, run.run_id) == before
    assert await counts(database, run.run_id) == (2, lines // 200 + 1)


def test_a_worker_looks_after_logs(tmp_path: Path, sqlite_url: str) -> None:
    """The whole of it, as processes: a run is packed after its end, and reads as it did."""
    stack = Stack(tmp_path, sqlite_url, LOG_PACK_AFTER_S="0")
    try:
        run_id = stack.submit(shell("seq 1 700"))
        stack.wait_end(run_id)
        before = stack.events(run_id)
        wait_for(
            lambda: 'tailrun_log_upkeep_total{work="packed"} 1.0' in stack.workers[0].get("/metrics").text,
            "the janitor",
        )
        assert stack.events(run_id) == before
        assert len(before) > 700
        with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as db:
            assert db.execute("SELECT count(*) FROM log_lines").fetchone() == (2,)
        db.close()
    finally:
        stack.close()
