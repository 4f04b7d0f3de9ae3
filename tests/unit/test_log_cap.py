"""What is kept of a log that is too long: its first half, its last half, one mark between."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.models import Event, EventType
from app.worker.log_cap import CutRange, LogCap


def batch(first: int, count: int, size: int) -> list[Event]:
    return [Event(first + i, EventType.LOG, 0, "r", 1, content="x" * size) for i in range(count)]


def test_a_short_log_is_kept_whole() -> None:
    cap = LogCap(10_000)
    assert all(cap.add(batch(1 + 10 * n, 10, 90)) is None for n in range(11))


def test_the_middle_goes_and_the_ends_stay() -> None:
    cap = LogCap(10_000)
    cuts = [cap.add(batch(1 + 10 * n, 10, 100)) for n in range(40)]
    last = [cut for cut in cuts if cut is not None][-1]
    assert last.from_seq == 51, "5 000 bytes of head are 50 lines"
    assert 400 - last.to_seq <= 60, "about 5 000 bytes of end"
    assert last.lines == last.to_seq - last.from_seq + 1
    assert last.bytes == last.lines * 100


@given(
    limit=st.integers(1_000, 5_000),
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 300)), min_size=1, max_size=60),
)
def test_cuts_grow_from_one_place_and_never_reach_the_end(limit: int, sizes: list[tuple[int, int]]) -> None:
    """Each cut contains the one before; what is kept stays within head, window and one batch."""
    cap, seq = LogCap(limit), 1
    kept = dict[int, int]()
    cuts = list[CutRange]()
    for count, size in sizes:
        events = batch(seq, count, size)
        seq += count
        cut = cap.add(events)
        kept |= {event.seq: size for event in events}
        if cut is not None:
            cuts.append(cut)
            kept = {s: n for s, n in kept.items() if not cut.from_seq <= s <= cut.to_seq}
            assert cut.to_seq < events[0].seq or len(events) == 0
        largest = max(count * size for count, size in sizes)
        assert sum(kept.values()) <= limit * 1.1 + 2 * largest
    assert all(a.from_seq == b.from_seq and a.to_seq < b.to_seq for a, b in pairwise(cuts))
