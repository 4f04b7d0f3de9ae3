"""What is kept of a log that is too long: its first half, its last half, one mark between."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.events import Event, EventType, LineBatch, Written
from app.db.log_weight import ROW_BYTES, Block, Kept, blocks_of
from app.stream.cap import CutRange, LogCap
from tailrun.process.lines import Line, Stream


def log(seq: int, content: str) -> Event:
    return Event(seq, EventType.LOG, 0, "r", 1, content=content)


def batch(first: int, contents: list[str], step: str | None = None, src: str | None = None) -> LineBatch:
    return LineBatch(first, 0, "r", 1, step, [Line(Stream.STDOUT, text, src=src) for text in contents])


def weight(event: Event) -> int:
    (block,) = blocks_of(event, 1)
    return block.weight


def kept_of(cap: LogCap, batches: list[Written]) -> dict[int, Event]:
    """Put `batches` through as commits would; return what is left, without markers."""
    kept = dict[int, Event]()
    for written in batches:
        kept |= {event.seq: event for event in written.events()}
        if (cut := cap.add([written])) is not None:
            kept = {seq: event for seq, event in kept.items() if not cut.from_seq <= seq <= cut.to_seq}
    return kept


def test_a_short_log_is_kept_whole() -> None:
    cap = LogCap(10_000)
    assert all(cap.add([batch(1 + 5 * n, ["x" * 100] * 5)]) is None for n in range(10))


def test_the_middle_goes_and_the_ends_stay() -> None:
    cap = LogCap(100_000)
    cuts = [cap.add([batch(1 + 10 * n, ["x" * 100] * 10)]) for n in range(400)]
    last = [cut for cut in cuts if cut is not None][-1]
    assert last.from_seq == 251, "50 000 bytes of head are 250 lines of 100 bytes and their rows"
    assert 200 <= 4000 - last.to_seq <= 250, "at most 50 000 bytes of end"
    assert last.lines == last.to_seq - last.from_seq + 1
    assert last.bytes == last.lines * 100


MANY: dict[str, Any] = {
    "empty lines": lambda seq: batch(seq, [""] * 500),
    "characters of four bytes": lambda seq: batch(seq, ["\U0001f600" * 100] * 50),
    "lines of a pod": lambda seq: batch(seq, ["x"] * 100, src="2026-01-01T00:00:00.000000000Z 0"),
    "lines of a step of a long name": lambda seq: batch(seq, ["x"] * 100, step="s" * 60),
    "updates of a progress bar": lambda seq: Event(
        seq, EventType.LOG, 0, "r", 1, content="", data={"cr": True}
    ),
    "events that are no lines": lambda seq: Event(
        seq, EventType.ARTIFACT, 0, "r", 1, data={"path": "p" * 99}
    ),
}


@pytest.mark.parametrize("many", MANY.values(), ids=MANY)
def test_whatever_a_run_repeats_the_limit_bounds_what_its_rows_take(many: Any) -> None:
    """Content in UTF-8, fields, and the row itself; an upper bound and one that shows that half is used."""
    limit, cap, batches, seq = 100_000, LogCap(100_000), list[Written](), 1
    while len(batches) < 4000 and seq < 40_000:
        batches.append(many(seq))
        seq = batches[-1].seq + 1
    kept = kept_of(cap, batches)
    total = sum(
        ROW_BYTES
        + len((event.step or "").encode())
        + len((event.content or "").encode())
        + len(repr(event.data))
        for event in kept.values()
    )
    assert limit // 2 <= total <= limit * 1.02, "repr of {} is two bytes"
    assert max(kept) == seq - 1


def test_one_batch_that_is_over_the_limit_is_cut_inside() -> None:
    """So is the last one, which comes with the run's end; the end itself stays."""
    cap = LogCap(20_000)
    events: list[Written] = [batch(1, ["x" * 100] * 5_000), Event(5_001, EventType.END, 0, "r", 1)]
    cut = cap.add(events)
    assert cut is not None
    assert cut.from_seq <= 60
    assert 4_900 <= cut.to_seq < 5_001
    assert cut.lines == cut.to_seq - cut.from_seq + 1


def test_the_newest_event_stays_however_large() -> None:
    cap = LogCap(10_000)
    cap.add([batch(1, ["x" * 50] * 100)])
    cut = cap.add([log(101, "y" * 1_000_000)])
    assert cut is not None
    assert cut.to_seq == 100


line_texts = st.sampled_from(["", "x", "ä" * 40, "\U0001f600" * 70, "y" * 300, "nul \0", "half \ud83d"])


@given(
    limit=st.integers(10_000, 30_000),
    batches=st.lists(st.lists(line_texts, min_size=1, max_size=60), min_size=1, max_size=40),
)
def test_cuts_grow_from_one_place_and_never_reach_the_end(limit: int, batches: list[list[str]]) -> None:
    """Each cut contains the one before; what is kept is within the limit."""
    cap, seq = LogCap(limit), 1
    kept, cuts = dict[int, Event](), list[CutRange]()
    for texts in batches:
        lines = batch(seq, texts)
        seq = lines.seq + 1
        kept |= {event.seq: event for event in lines.events()}
        if (cut := cap.add([lines])) is not None:
            cuts.append(cut)
            gone = {s: e for s, e in kept.items() if cut.from_seq <= s <= cut.to_seq}
            kept = {s: e for s, e in kept.items() if s not in gone}
            assert cut.to_seq < lines.seq
        assert sum(map(weight, kept.values())) <= limit
    assert all(a.from_seq == b.from_seq and a.to_seq < b.to_seq for a, b in pairwise(cuts))
    if cuts:
        assert cuts[-1].lines == seq - 1 - len(kept)


@given(st.lists(line_texts, min_size=1, max_size=100), st.integers(1, 30_000))
def test_blocks_are_a_batch_in_order_and_weigh_what_its_events_weigh(texts: list[str], grain: int) -> None:
    lines = batch(7, texts, step="ß")
    blocks = list(blocks_of(lines, grain))
    assert [block.last_seq for block in blocks] == sorted({block.last_seq for block in blocks})
    assert blocks[-1].last_seq == lines.seq
    one = blocks[0]
    for block in blocks[1:]:
        one = one.joined(block)
    events = [block for event in lines.events() for block in blocks_of(event, grain)]
    assert (one.lines, one.bytes, one.weight) == (
        len(texts),
        sum(block.bytes for block in events),
        sum(block.weight for block in events),
    )
    assert all(block.weight <= grain or block.lines == 1 for block in blocks)


def test_a_later_attempt_goes_on_from_what_is_stored() -> None:
    """One limit for all attempts: no head of its own, and the earlier cut grows."""
    cut = {"from": 11, "to": 500, "lines": 480, "bytes": 48_000}
    cap = LogCap.resumed(20_000, Kept([Block(530, 30, 3_000, 6_000)], cut))
    first = cap.add([batch(531, ["x" * 100] * 100)])
    assert first is not None
    assert (first.from_seq, first.lines) == (11, 480 + first.to_seq - 500)
    assert first.bytes == 48_000 + 100 * (first.to_seq - 500)


def test_a_later_attempt_fills_the_head_that_an_earlier_one_left() -> None:
    cap = LogCap.resumed(20_000, Kept([Block(10, 10, 1_000, 2_000)], None))
    cut = cap.add([batch(11, ["x" * 100] * 1000)])
    assert cut is not None
    assert 40 <= cut.from_seq <= 51, "10 000 bytes of head are 50 lines of 100 bytes and their rows"
