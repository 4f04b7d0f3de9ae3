"""What passes a filter, and that a block is passed over only when nothing in it passes."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.ended_runs import TEXT, any_log

from app.core.errors import StorageError
from app.core.events import NEVER_FILTERED, Event, EventType
from app.core.log_filter import BlockSummary, LogFilter
from app.db.log_rows import events_of, may_hold, pack, unpack
from app.db.row_codec import clean, clean_or_none, to_json
from tailrun.process.lines import Level, Stream

filters = st.builds(
    LogFilter,
    st.none() | st.sampled_from(Level),
    st.none() | st.sampled_from(Stream),
    st.none() | TEXT,
)


@given(any_log, filters, st.integers(0, 600), st.integers(1, 60))
def test_a_block_that_is_passed_over_holds_nothing_that_passes(
    log: list[Event], wanted: LogFilter, start: int, count: int
) -> None:
    block = log[start % len(log) :][:count]
    passed = wanted.select(block)
    assert BlockSummary.of(block).may_pass(wanted) or passed == []
    assert [event for event in block if event.type in NEVER_FILTERED] == [
        event for event in passed if event.type in NEVER_FILTERED
    ]


@given(any_log)
def test_a_block_is_summed_up(log: list[Event]) -> None:
    summary = BlockSummary.of(log)
    assert (summary.first_seq, summary.last_seq) == (log[0].seq, log[-1].seq)
    assert (summary.events, summary.lines) == (len(log), sum(e.type is EventType.LOG for e in log))


@pytest.mark.parametrize(
    ("q", "found"), [("ERROR", True), ("ä", True), ("Ä", False), ("", True), ("x", False)]
)
def test_ascii_letters_match_in_either_case_others_as_they_are(q: str, found: bool) -> None:
    event = Event(1, EventType.LOG, 0, "r", 1, content="an Error, ä")
    assert bool(LogFilter(q=q).select([event])) is found


def test_a_chunk_of_a_newer_release_is_not_guessed_at() -> None:
    chunk = pack([Event(1, EventType.LOG, 0, "r", 1, content="x")])
    assert events_of("r", unpack("r", 1, chunk.body))[0].content == "x"
    with pytest.raises(StorageError, match="newer release"):
        unpack("r", 2, chunk.body)


@given(any_log, TEXT, st.integers(0, 600))
def test_a_chunk_that_is_passed_over_holds_no_line_of_a_search(log: list[Event], q: str, start: int) -> None:
    """Whatever JSON writes as an escape; and what a chunk holds comes back as it was."""
    events = [replace(event, content=clean_or_none(event.content)) for event in log[start % len(log) :][:40]]
    events = [replace(event, data=orjson.loads(to_json(event.data))) for event in events]
    chunk = pack(events)
    columns = unpack("", 1, chunk.body)
    assert events_of("", columns) == events
    wanted = LogFilter(q=clean(q))
    if wanted.q and not may_hold(columns, wanted.q):
        assert [event for event in wanted.select(events) if event.type not in NEVER_FILTERED] == []
