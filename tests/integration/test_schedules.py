"""Schedules fire once a tick, whoever looks; on both databases, over a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import orjson
import pytest
from support.fake_redis import fake_clients
from support.run_rows import new_run

from app.core.errors import Conflict
from app.core.models import Priority, RunStatus
from app.db.engine import Database
from app.db.run_store import RunStore
from app.db.schedule_store import BACKLOG_FULL, Schedule, ScheduleStore
from app.maintenance.scheduler import Scheduler
from app.redis.clients import RedisClients
from app.redis.queue import Queue

HOUR_US = 3_600_000_000
ID = "00000000-0000-4000-8000-{:012}"


@pytest.fixture
async def clients() -> AsyncIterator[RedisClients]:
    clients = fake_clients()
    yield clients
    await clients.close()


def scheduler(database: Database, clients: RedisClients, backlog: int = 100) -> Scheduler:
    return Scheduler(ScheduleStore(database), Queue(clients), backlog_max=backlog)


def schedule(n: int, next_at: int | None, cron: str = "0 * * * *", **fields: object) -> Schedule:
    shared = new_run(labels={"n": str(n)}, priority=Priority.HIGH, retry_on=["timeout"]).definition()
    made = Schedule(
        schedule_id=ID.format(n),
        user_id="ann",
        cron=cron,
        timezone="UTC",
        run=orjson.loads(orjson.dumps(shared)),
        created_at=1,
        next_at=next_at,
    )
    return replace(made, **fields)  # pyright: ignore[reportArgumentType]


async def runs_of(database: Database) -> list[str]:
    page, _ = await RunStore(database).page(user_id="ann", limit=200)
    return [run.run_id for run in page]


async def test_a_repeat_finds_the_schedule_of_a_release_with_fewer_fields(database: Database) -> None:
    """It was kept without those that came later, which the repeat does not give either."""
    store, new = ScheduleStore(database), schedule(1, None)
    old = replace(new, run={name: value for name, value in new.run.items() if name != "agent"})
    kept = await store.create(old)
    assert await store.create(new) == kept
    with pytest.raises(Conflict):
        await store.create(replace(new, run=new.run | {"agent": {"model": "other"}}))


async def test_a_due_schedule_makes_its_run(database: Database, clients: RedisClients) -> None:
    """With everything that it was made with; queued, pushed, and the next tick noted."""
    store, queue = ScheduleStore(database), Queue(clients)
    now = await queue.time_us()
    await store.create(schedule(1, now - 5))
    assert await scheduler(database, clients).fire_due() == 1
    [run_id] = await runs_of(database)
    run = await RunStore(database).get(run_id)
    assert run is not None
    assert (run.status, run.labels, run.priority, run.retry_on) == (
        RunStatus.QUEUED,
        {"n": "1"},
        Priority.HIGH,
        ["timeout"],
    )
    [entry] = await clients.commands.lrange("jobs:pending", 0, -1)
    assert orjson.loads(entry)["run_id"] == run_id
    [after], _ = await store.page(user_id="ann", limit=10)
    assert (after.last_at, after.last_run_id, after.last_error) == (now - 5, run_id, None)
    assert after.next_at is not None
    assert now < after.next_at <= now + HOUR_US
    assert await scheduler(database, clients).fire_due() == 0


async def test_missed_ticks_are_one_run(database: Database, clients: RedisClients) -> None:
    """Nobody was there for a week: one run at once, then the first tick after now."""
    store, now = ScheduleStore(database), await Queue(clients).time_us()
    await store.create(schedule(1, now - 7 * 24 * HOUR_US))
    assert await scheduler(database, clients).fire_due() == 1
    assert await scheduler(database, clients).fire_due() == 0
    assert len(await runs_of(database)) == 1
    [after], _ = await store.page(user_id="ann", limit=10)
    assert after.next_at is not None
    assert after.next_at > now


async def test_two_workers_never_fire_one_tick_twice(
    migrated_url: str,
    clients: RedisClients,
    again: int,
) -> None:
    """Both look at the same 5 due schedules at the same time, each over connections of its own."""
    async with AsyncExitStack() as stack:
        databases = [Database(migrated_url) for _ in range(2)]
        for database in databases:
            stack.push_async_callback(database.close)
        store, now = ScheduleStore(databases[0]), await Queue(clients).time_us()
        for n in range(5):
            await store.create(schedule(n, now - 1 - n))
        both = [scheduler(database, clients) for database in databases]
        made = await asyncio.gather(*(one.fire_due() for one in both))
        assert sum(made) == 5
        assert len(await runs_of(databases[0])) == 5
        assert await clients.commands.llen("jobs:pending") == 5


async def test_a_lost_push_is_left_to_the_reconciler(database: Database, clients: RedisClients) -> None:
    """The run stands in the database; that counts."""
    store, queue = ScheduleStore(database), Queue(clients)
    now = await queue.time_us()
    await store.create(schedule(1, now - 5))
    [due] = await store.due(now, 10)
    assert await store.fire(due, now + 1, now, backlog_max=10) is not None
    assert await clients.commands.llen("jobs:pending") == 0
    assert await store.fire(due, now + 1, now, backlog_max=10) is None
    [queued] = await RunStore(database).open_runs(RunStatus.QUEUED, 10)
    assert queued.run_id == due.new_run().run_id


async def test_a_full_backlog_skips_the_tick(database: Database, clients: RedisClients) -> None:
    """A schedule must not fill what its user may not: it says why, and tries again next time."""
    store, now = ScheduleStore(database), await Queue(clients).time_us()
    await RunStore(database).create(new_run(), now)
    await store.create(schedule(1, now - 5))
    assert await scheduler(database, clients, backlog=1).fire_due() == 0
    [after], _ = await store.page(user_id="ann", limit=10)
    assert (after.last_error, after.last_run_id) == (BACKLOG_FULL, None)
    assert after.next_at is not None
    assert after.next_at > now


async def test_a_schedule_that_is_not_understood_stops_no_other(
    database: Database, clients: RedisClients
) -> None:
    """A zone that this machine lacks, a row by a newer release: it rests for a minute, and says why."""
    store, now = ScheduleStore(database), await Queue(clients).time_us()
    await store.create(schedule(1, now - 9, timezone="Mars/Phobos"))
    await store.create(schedule(2, now - 8, run={"kind": "dance"}))
    await store.create(schedule(3, now - 7))
    assert await scheduler(database, clients).fire_due() == 1
    found, _ = await store.page(user_id="ann", limit=10)
    for broken in (one for one in found if not one.schedule_id.endswith("3")):
        assert broken.last_error
        assert broken.next_at is not None
        assert broken.next_at >= now + 60_000_000


async def test_a_schedule_that_has_no_further_time_rests(database: Database, clients: RedisClients) -> None:
    store, now = ScheduleStore(database), await Queue(clients).time_us()
    await store.create(schedule(1, now - 5, cron="0 0 */31 2 SUN#5"))
    assert await scheduler(database, clients).fire_due() == 1
    [after], _ = await store.page(user_id="ann", limit=10)
    assert after.next_at is None
    assert await store.due(now + 10**15, 10) == []


async def test_a_user_has_so_many_and_no_more(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.db.schedule_store.MOST_PER_USER", 2)
    store = ScheduleStore(database)
    await store.create(schedule(1, 5))
    await store.create(schedule(2, 5))
    with pytest.raises(Conflict, match="2 schedules"):
        await store.create(schedule(3, 5))
    await store.create(schedule(3, 5, user_id="bob"))


async def test_schedules_are_listed_in_pages(database: Database) -> None:
    store = ScheduleStore(database)
    for n in range(5):
        await store.create(schedule(n, 5, created_at=n // 2))
    await store.create(schedule(9, 5, user_id="bob"))
    seen: list[str] = []
    page, cursor = await store.page(user_id="ann", limit=2)
    while True:
        seen += [one.schedule_id for one in page]
        if cursor is None:
            break
        page, cursor = await store.page(user_id="ann", limit=2, cursor=cursor)
    assert seen == [ID.format(n) for n in (4, 3, 2, 1, 0)]
    assert len((await store.page(user_id=None, limit=10))[0]) == 6


async def test_a_deleted_schedule_fires_no_more(database: Database, clients: RedisClients) -> None:
    """Not even in the hands of a worker that has just read it."""
    store, now = ScheduleStore(database), await Queue(clients).time_us()
    await store.create(schedule(1, now - 5))
    [due] = await store.due(now, 10)
    assert not await store.delete(due.schedule_id, "bob")
    assert await store.delete(due.schedule_id, "ann")
    assert await store.fire(due, now + 1, now, backlog_max=10) is None
    assert await runs_of(database) == []
