"""A batch of lines is its events, on the wire and in counts: one shape, however fast it is made."""

from __future__ import annotations

import functools

from hypothesis import given
from hypothesis import strategies as st

from app.core.events import Event, LineBatch
from app.db.log_rows import line_arrays, weigh
from app.db.log_weight import Block, blocks_of
from app.stream.buffer import WriteBuffer
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
def test_what_is_held_is_handed_out_once_and_in_order(parts: list[LineBatch], limit: int) -> None:
    """Chunks for Redis and batches for the database each go through all of it."""
    left, seq = WriteBuffer(0), 0
    events: list[Event] = []
    for part in parts:
        batch = LineBatch(seq + 1, part.ts, part.run_id, part.attempt, part.step, part.lines)
        left.add(batch)
        seq = batch.seq
        events += batch.events()
    assert (left.unpublished, left.uncommitted) == (seq, seq)
    assert left.chunk() == [event.encode() for event in events]
    assert left.bytes == sum(len(event.encode()) for event in events)
    left.published_to(seq // 2)
    assert left.chunk() == [event.encode() for event in events][seq // 2 :]
    taken: list[Event] = []
    while left.uncommitted:
        batches = left.batch(limit)
        assert (
            len(batches) == 1 or sum(len(b.lines) for b in batches[:-1] if isinstance(b, LineBatch)) < limit
        )
        taken += [event for batch in batches if isinstance(batch, LineBatch) for event in batch.events()]
        left.committed_batch(batches)
    assert taken == events
    left.published_to(seq)
    assert (left.bytes, left.unpublished_bytes) == (0, 0)
