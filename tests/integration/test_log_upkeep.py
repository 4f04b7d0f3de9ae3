"""Packing and expiry: what they touch, what they leave, what other releases and a kill make of it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, func, select
from support.ended_runs import LATER, ended_run, expire_all, pack_all, plain_lines, read_all, to_keep
from support.run_rows import NOW, lines, running, snapshot

from app.core.events import Event, EventType
from app.db.engine import Database
from app.db.log_retention import EndedRun, LogUpkeep
from app.db.log_rows import WHOLE_LINE, to_event
from app.db.log_store import EXPIRED, PACKED, LogStore
from app.db.run_store import Batch, RunStore
from app.db.tables import log_chunks, log_lines
from app.stream.ring import contiguous
from tailrun.process.lines import Level


@pytest.fixture
def logs(database: Database) -> LogStore:
    return LogStore(database)


@pytest.fixture
def upkeep(database: Database) -> LogUpkeep:
    return LogUpkeep(database)


async def counts(database: Database, run_id: str) -> tuple[int, int]:
    """How many rows and chunks a run has."""

    def work(connection: Connection) -> tuple[int, int]:
        found = [
            connection.execute(select(func.count()).where(table.c.run_id == run_id)).scalar_one()
            for table in (log_lines, log_chunks)
        ]
        return found[0], found[1]

    return await database.read(work)


def whole(events: list[Event]) -> bool:
    """Whether a watcher gets from 0 to the end without a hole."""
    entries = [(event.seq, event.encode()) for event in events]
    return contiguous(entries, 0) == entries and events[-1].type is EventType.END


async def test_a_log_of_more_than_200_lines_goes_into_chunks(
    database: Database, logs: LogStore, upkeep: LogUpkeep
) -> None:
    """What is left in rows: the end, and a marker for releases that know no chunks."""
    run = await ended_run(database, plain_lines(1234))
    await pack_all(upkeep, run)
    assert await counts(database, run.run_id) == (2, 7)
    assert [event.seq for event in await read_all(logs, run.run_id)] == list(range(1, run.last_seq + 1))
    assert (await to_keep(upkeep, run, PACKED)).run_id == run.run_id
    after = await RunStore(database).get(run.run_id)
    assert after == run, "the run itself is as it was"


async def test_a_log_that_fits_into_one_chunk_stays_in_rows(database: Database, upkeep: LogUpkeep) -> None:
    run = await ended_run(database, plain_lines(198))
    before = await snapshot(database, run.run_id)
    await pack_all(upkeep, run)
    assert await snapshot(database, run.run_id) == before
    assert (await counts(database, run.run_id))[1] == 0


async def test_a_run_that_goes_on_is_never_touched(database: Database, upkeep: LogUpkeep) -> None:
    """Neither found nor, if somebody were to name it, changed."""
    store = RunStore(database)
    run, fence = await running(store)
    await store.commit(fence, 2, Batch(events=lines(run.run_id, 3, 999)))
    assert await upkeep.ended(None, since=0, before=LATER, limit=10) == []
    before = await snapshot(database, run.run_id)
    named = EndedRun(run.run_id, "ann", NOW, 1, 1000, 997, 1, None)
    assert not await upkeep.pack_next(named)
    assert not await upkeep.expire_next(named, LATER, archived=False)
    assert await snapshot(database, run.run_id) == before
    assert (await counts(database, run.run_id))[1] == 0


async def test_large_lines_make_chunks_of_fewer(
    database: Database, logs: LogStore, upkeep: LogUpkeep
) -> None:
    """A chunk takes no further line once it holds a million characters."""
    events = [
        Event(seq, EventType.LOG, NOW, "", 1, Level.INFO, content=str(seq) * 60_000) for seq in range(3, 260)
    ]
    run = await ended_run(database, events)
    before = await read_all(logs, run.run_id, 50)
    await pack_all(upkeep, run)
    _, chunks = await counts(database, run.run_id)
    assert chunks > 20
    assert await read_all(logs, run.run_id, 50) == before


async def test_rows_that_changed_meanwhile_are_never_lost(
    database: Database, upkeep: LogUpkeep, logs: LogStore
) -> None:
    """If not exactly what was read can be deleted, nothing is; the next look sees what there is."""
    run = await ended_run(database, plain_lines(500))
    kept = await to_keep(upkeep, run)
    genuine, taken = database.read_one, 0

    async def reads_then_loses_a_row(work: Any) -> Any:
        nonlocal taken
        answer = await genuine(work)
        taken += 1
        gone = log_lines.delete().where(log_lines.c.run_id == run.run_id, log_lines.c.seq == 100)
        await database.write(lambda connection: connection.execute(gone))
        return answer

    database.read_one = reads_then_loses_a_row
    with pytest.raises(Exception, match="199 rows where 200 were read"):
        await upkeep.pack_next(kept)
    del database.read_one
    assert taken == 1
    assert await counts(database, run.run_id) == (502, 0)
    await pack_all(upkeep, run)
    assert [event.seq for event in await read_all(logs, run.run_id)] == [*range(1, 100), *range(101, 504)]


async def test_the_previous_release_sees_that_lines_are_elsewhere(
    database: Database, upkeep: LogUpkeep
) -> None:
    """It reads rows alone: `truncated` for all that is packed, after every transaction, then the rest."""
    run = await ended_run(database, plain_lines(700))
    kept = await to_keep(upkeep, run)
    query = select(*WHOLE_LINE).where(log_lines.c.run_id == run.run_id).order_by(log_lines.c.seq)
    more = True
    while more:
        more = await upkeep.pack_next(kept)
        rows = await database.read(lambda connection: connection.execute(query).all())
        events = [to_event(row) for row in rows]
        assert whole(events)
        assert events[0].type is EventType.TRUNCATED
        assert events[0].data["from"] == 1
    assert [event.type for event in events] == [EventType.TRUNCATED, EventType.END]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("count", [20, 5000, 23_000])
async def test_expiry_leaves_a_stream_that_is_whole_at_every_moment(
    database: Database, logs: LogStore, upkeep: LogUpkeep, count: int, packed: bool
) -> None:
    """From the back: what is left in front follows on to the marker, and the marker to the end."""
    run = await ended_run(database, plain_lines(count))
    if packed:
        await pack_all(upkeep, run)
    kept = await to_keep(upkeep, run, PACKED if packed and count > 200 else None)
    more, steps = True, 0
    while more:
        more = await upkeep.expire_next(kept, LATER, archived=False)
        steps += 1
        events = await read_all(logs, run.run_id)
        assert whole(events)
        assert whole(events[-2:])
        resumed = await logs.page(run.run_id, run.last_seq - 5, 1000)
        assert [event.seq for event in resumed[-2:]] == [run.last_seq - 1, run.last_seq]
    assert steps <= 1 + count // 2000
    assert await counts(database, run.run_id) == (2, 0)
    marker, end = events
    assert (marker.type, marker.seq, end.seq) == (EventType.TRUNCATED, run.last_seq - 1, run.last_seq)
    about = {"from": 1, "to": run.last_seq - 1, "lines": run.log_lines, "bytes": run.log_size}
    assert marker.data == about | {"reason": EXPIRED}


@pytest.mark.parametrize("archived", [False, True])
async def test_an_expired_run_stays_listed_and_says_whether_its_log_is_whole(
    database: Database, logs: LogStore, upkeep: LogUpkeep, archived: bool
) -> None:
    """What stands in its archive is."""
    store = RunStore(database)
    run = await ended_run(database, plain_lines(300))
    await expire_all(upkeep, run, None, archived=archived)
    after = await store.get(run.run_id)
    assert after is not None
    assert (after.truncated, after.log_lines, after.log_size) == (not archived, run.log_lines, run.log_size)
    assert [item.run_id for item in (await store.page(user_id="ann"))[0]] == [run.run_id]
    assert await logs.tail_cursor(run.run_id, 10) == 0
    for stage in (None, PACKED):
        assert await upkeep.ended(stage, since=0, before=LATER, limit=10) == []


async def test_a_killed_expiry_is_taken_up_where_it_stopped(
    database: Database, logs: LogStore, upkeep: LogUpkeep
) -> None:
    """With rows and chunks, and the word that there is an archive."""
    run = await ended_run(database, plain_lines(30_000))
    kept = await to_keep(upkeep, run)
    for _ in range(120):
        await upkeep.pack_next(kept)
    assert await upkeep.expire_next(kept, LATER, archived=True)
    again = await to_keep(LogUpkeep(database), run)
    assert again == kept
    while await upkeep.expire_next(again, LATER + 1, archived=False):
        assert whole(await read_all(logs, run.run_id))
    marker, _ = await read_all(logs, run.run_id)
    assert (marker.ts, marker.data["archived"]) == (LATER, True)
    assert await counts(database, run.run_id) == (2, 0)


async def test_work_is_found_oldest_first_and_once(database: Database, upkeep: LogUpkeep) -> None:
    """Page by page; `before` is not among it."""
    made = [await ended_run(database, plain_lines(5 + 300 * (n % 2))) for n in range(4)]
    order = sorted((run.ended_at or 0, run.run_id) for run in made)
    found = await upkeep.ended(None, since=0, before=LATER, limit=3)
    found += await upkeep.ended(None, since=0, before=LATER, limit=3, after=found[-1])
    assert [(item.ended_at, item.run_id) for item in found] == order
    assert await upkeep.ended(None, since=0, before=found[0].ended_at, limit=9) == []
    assert len(await upkeep.ended(None, since=found[-1].ended_at, before=LATER, limit=9)) == 2
