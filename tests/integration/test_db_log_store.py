"""Reading the log: pages, filters, the last lines."""

from __future__ import annotations

from typing import Any

import pytest
from support.run_rows import NOW, end, line, running

from app.core.events import Event, EventType
from app.core.log_filter import LogFilter
from app.db.engine import Database
from app.db.log_store import LogStore
from app.db.run_store import Batch, RunStore
from tailrun.process.lines import Level, Stream


@pytest.fixture
async def run_id(database: Database) -> str:
    """A run of the events 1–2 (status), 3–12 (lines), 13 (step), 14 (truncated), 15 (end)."""
    store = RunStore(database)
    run, fence = await running(store)
    events = [
        line(
            run.run_id,
            seq,
            f"Line {seq}",
            level=list(Level)[seq % 4],
            stream=Stream.STDERR if seq % 2 else Stream.STDOUT,
        )
        for seq in range(3, 12)
    ]
    events.append(line(run.run_id, 12, r"100%_done\now", level=Level.DEBUG, stream=Stream.STDOUT))
    events.append(Event(13, EventType.STEP, NOW, run.run_id, 1, Level.INFO, step="s1", content="Line step"))
    events.append(Event(14, EventType.TRUNCATED, NOW, run.run_id, 1, data={"from": 14, "to": 14}))
    events.append(end(run.run_id, 15))
    await store.commit(fence, 2, Batch(events=events))
    return run.run_id


@pytest.fixture
def logs(database: Database) -> LogStore:
    return LogStore(database)


async def test_pages_follow_the_sequence(logs: LogStore, run_id: str) -> None:
    seqs, after = [], 0
    while page := await logs.page(run_id, after, 4):
        assert len(page) <= 4
        after = page[-1].seq
        seqs += [event.seq for event in page]
    assert seqs == list(range(1, 16))
    assert await logs.page("unknown", 0, 10) == []


async def seqs(logs: LogStore, run_id: str, after: int = 0, limit: int = 100, **filters: Any) -> list[int]:
    return [event.seq for event in await logs.page(run_id, after, limit, LogFilter(**filters))]


async def test_level_means_at_least(logs: LogStore, run_id: str) -> None:
    """seq % 4 is the level: 2 warning, 3 error. What ends or explains the stream always passes."""
    assert await seqs(logs, run_id, level=Level.ERROR) == [3, 7, 11, 14, 15]
    assert await seqs(logs, run_id, level=Level.WARNING) == [3, 6, 7, 10, 11, 14, 15]
    assert await seqs(logs, run_id, level=Level.DEBUG) == list(range(3, 16))


async def test_filters_combine_and_page(logs: LogStore, run_id: str) -> None:
    assert await seqs(logs, run_id, stream=Stream.STDERR) == [3, 5, 7, 9, 11, 14, 15]
    assert await seqs(logs, run_id, stream=Stream.STDERR, level=Level.ERROR, q="LINE 1") == [11, 14, 15]
    assert await seqs(logs, run_id, after=3, limit=2, stream=Stream.STDERR) == [5, 7]


async def test_search_takes_its_text_literally(logs: LogStore, run_id: str) -> None:
    assert await seqs(logs, run_id, q="line 1") == [10, 11, 14, 15]
    assert await seqs(logs, run_id, q="%_D") == [12, 14, 15]
    assert await seqs(logs, run_id, q="\\N") == [12, 14, 15]
    assert await seqs(logs, run_id, q="e%1") == [14, 15]
    assert await seqs(logs, run_id, q="a\x00b") == [14, 15]
    assert await seqs(logs, run_id, q="STEP") == [13, 14, 15]


async def test_the_tail_counts_lines_of_output(logs: LogStore, run_id: str) -> None:
    cursor = await logs.tail_cursor(run_id, 3)
    assert cursor == 9
    assert await seqs(logs, run_id, cursor) == [10, 11, 12, 13, 14, 15]
    assert await logs.tail_cursor(run_id, 10) == 2
    assert await logs.tail_cursor(run_id, 11) == 0
    assert await logs.tail_cursor(run_id, 0) == 15
    assert await logs.tail_cursor("unknown", 5) == 0
    assert await logs.tail_cursor("unknown", 0) == 0
