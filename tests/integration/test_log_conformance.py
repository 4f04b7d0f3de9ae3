"""A log reads the same, bit for bit, before, while and after it is packed: any content, any question."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.ended_runs import LATER, TEXT, any_log, ask, ended_run, pack_all, plain_lines, read_all, to_keep

from app.core.events import Event
from app.core.log_filter import LogFilter
from app.db import log_store
from app.db.engine import Database
from app.db.log_retention import LogUpkeep
from app.db.log_rows import unpack
from app.db.log_store import PACKED, LogStore
from tailrun.process.lines import Level, Stream

questions = st.lists(
    st.fixed_dictionaries(
        {"after": st.integers(0, 900), "limit": st.sampled_from([1, 7, 199, 200, 201, 1000])},
        optional={
            "level": st.sampled_from(Level),
            "stream": st.sampled_from(Stream),
            "q": st.one_of(TEXT, st.sampled_from(["ERR", "ä", "Ä", "STRASSE", "i", "k", "7", "\0"])),
        },
    ),
    min_size=3,
    max_size=10,
)


async def answers(logs: LogStore, run_id: str, asked: list[dict[str, Any]]) -> list[Any]:
    """Everything that reading can say about a run, with the order of the fields."""
    found: list[Any] = [
        [(event, event.encode()) for event in await ask(logs, run_id, **question)] for question in asked
    ]
    found += [await read_all(logs, run_id, 97), await read_all(logs, run_id, 97, level=Level.ERROR)]
    found += [await logs.tail_cursor(run_id, n) for n in (0, 1, 5, 37, 200, 201, 1000)]
    return found


@pytest.fixture
def loop() -> Iterator[asyncio.Runner]:
    """One event loop for all examples of a property."""
    with asyncio.Runner() as runner:
        yield runner


def test_any_log_reads_the_same_before_while_and_after_packing(
    migrated_url: str, loop: asyncio.Runner, effort: int
) -> None:
    """After each transaction of the janitor, too: it may be killed, or be read, at any of them."""
    database = Database(migrated_url)
    logs, upkeep = LogStore(database), LogUpkeep(database)

    async def hold(events: list[Event], asked: list[dict[str, Any]]) -> None:
        run = await ended_run(database, events)
        before = await answers(logs, run.run_id, asked)
        kept = await to_keep(upkeep, run)
        while await upkeep.pack_next(kept):
            assert await answers(logs, run.run_id, asked) == before
        assert await answers(logs, run.run_id, asked) == before

    @settings(max_examples=6 * effort, database=None, suppress_health_check=list(HealthCheck))
    @given(any_log, questions)
    def property_holds(events: list[Event], asked: list[dict[str, Any]]) -> None:
        loop.run(hold(events, asked))

    property_holds()
    loop.run(database.close())


async def test_readers_beside_the_janitor_see_each_line_once(database: Database) -> None:
    """Pages of every size, read again and again while the log is packed under them."""
    logs, upkeep = LogStore(database), LogUpkeep(database)
    run = await ended_run(database, plain_lines(5000))
    expected = list(range(1, 5004))
    packed = asyncio.Event()
    rounds = 0

    async def read(limit: int) -> None:
        nonlocal rounds
        while not packed.is_set():
            assert [event.seq for event in await read_all(logs, run.run_id, limit)] == expected
            rounds += 1

    async def janitor() -> None:
        await pack_all(upkeep, run)
        packed.set()

    await asyncio.gather(janitor(), *(read(limit) for limit in (150, 333, 1000)))
    assert rounds >= 3
    assert [event.seq for event in await read_all(logs, run.run_id, 1000)] == expected


async def test_two_janitors_at_once_do_no_harm(database: Database) -> None:
    """A leader that was frozen comes back beside its successor."""
    logs, upkeep = LogStore(database), LogUpkeep(database)
    run = await ended_run(database, plain_lines(1500))
    before = await read_all(logs, run.run_id)
    kept = await to_keep(upkeep, run)

    async def janitor() -> None:
        while await upkeep.pack_next(kept):
            pass

    await asyncio.gather(*(janitor() for _ in range(3)))
    assert await upkeep.ended(PACKED, since=0, before=LATER, limit=10) != []
    assert await read_all(logs, run.run_id) == before


async def test_a_page_opens_only_the_chunks_it_needs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100 chunks: those of the page, those that hold the level, the one with the line."""
    logs, upkeep = LogStore(database), LogUpkeep(database)
    events = plain_lines(20_000)
    quiet = [replace(event, level=Level.INFO, stream=Stream.STDOUT) for event in events]
    quiet[12_345] = replace(quiet[12_345], level=Level.ERROR)
    run = await ended_run(database, quiet)
    await pack_all(upkeep, run)
    opened = 0

    def counted(run_id: str, layout: int, body: bytes) -> bytes:
        nonlocal opened
        opened += 1
        return unpack(run_id, layout, body)

    monkeypatch.setattr(log_store, "unpack", counted)
    for asked, found, most in (
        (lambda: logs.page(run.run_id, 0, 200), 200, 1),
        (lambda: logs.page(run.run_id, 9_950, 100), 100, 2),
        (lambda: logs.page(run.run_id, 3, 1000), 1000, 6),
        (lambda: logs.page(run.run_id, 0, 1000, LogFilter(Level.ERROR)), 2, 1),
        (lambda: logs.page(run.run_id, 0, 1000, LogFilter(stream=Stream.STDERR)), 1, 0),
        (lambda: logs.page(run.run_id, 20_002, 1000), 1, 0),
    ):
        opened = 0
        assert len(await asked()) == found
        assert opened <= most
    opened = 0
    assert await logs.tail_cursor(run.run_id, 15_000) == 5_002
    assert opened == 1
