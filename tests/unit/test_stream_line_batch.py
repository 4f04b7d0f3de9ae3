"""A batch of lines is its events, on the wire and in counts: one shape, however fast it is made."""

from __future__ import annotations

import functools

from hypothesis import given
from hypothesis import strategies as st

from app.core.events import Event, LineBatch
from app.db.log_rows import line_arrays, weigh
from app.db.log_weight import Block, blocks_of
from app.stream.lane import LaneQueue
from tailrun.process.lines import Level, Line, Stream

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def lines(src: st.SearchStrategy[str | None]) -> st.SearchStrategy[list[Line]]:
    marks = st.just(False)
    line = st.builds(Line, st.sampled_from(Stream), texts, st.sampled_from(Level), marks, marks, src)
    return st.lists(line, min_size=1, max_size=20)


batches = st.builds(
    LineBatch,
    first=st.integers(1, 2**53),
    ts=st.integers(0, 4_000_000_000_000_000),
    run_id=st.uuids().map(str),
    attempt=st.integers(0, 100),
    step=st.one_of(st.none(), texts),
    lines=lines(st.none()) | lines(texts),
)


@given(batches)
def test_a_batch_looks_on_the_wire_as_its_events(batch: LineBatch) -> None:
    """Byte for byte, and what is read back is the same."""
    raws = batch.encoded()
    assert raws == [event.encode() for event in batch.events()]
    assert [Event.decode(raw) for raw in raws] == batch.events()
    assert [event.seq for event in batch.events()] == list(range(batch.first, batch.seq + 1))


@given(batches)
def test_a_batch_weighs_what_its_events_weigh(batch: LineBatch) -> None:
    """For the run's counters, for the columns of PostgreSQL and for the cap."""
    assert weigh([batch]) == weigh(batch.events())
    assert line_arrays([batch]) == line_arrays(batch.events())
    each = [block for event in batch.events() for block in blocks_of(event, 10**9)]
    whole = functools.reduce(Block.joined, blocks_of(batch, 10**9))
    assert whole == functools.reduce(Block.joined, each)
    assert (whole.lines, whole.bytes) == weigh([batch])


@given(st.lists(batches, min_size=1, max_size=5), st.integers(1, 60))
def test_what_is_queued_is_handed_out_once_and_in_order(parts: list[LineBatch], limit: int) -> None:
    """In calls of about so many events; what is not removed is handed out again."""
    queue, seq, size = LaneQueue[LineBatch](), 0, 0
    events: list[Event] = []
    for part in parts:
        batch = LineBatch(seq + 1, part.ts, part.run_id, part.attempt, part.step, part.lines)
        seq, weight = batch.seq, sum(map(len, batch.encoded()))
        queue.add(batch, seq, weight)
        size += weight
        events += batch.events()
    assert (queue.events, queue.bytes, len(queue)) == (seq, size, len(parts))
    taken: list[Event] = []
    while queue:
        items, count = queue.head(limit)
        assert (items, count) == queue.head(limit)
        assert len(items) == 1 or sum(len(item.lines) for item in items[:-1]) < limit
        taken += [event for item in items for event in item.events()]
        queue.remove(count)
        assert queue.sent == items[-1].seq
    assert taken == events
    assert (queue.bytes, queue.events, queue.removed) == (0, 0, queue.added)
