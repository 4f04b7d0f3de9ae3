"""The merge by sequence, for itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stream_fixtures import end, log

from app.core.events import Event, EventType, seq_of
from app.stream.ring import Ring, contiguous, is_end

RUN = "r"


def raw(seq: int) -> bytes:
    return log(RUN, seq).encode()


def ring(last: int = 0, lines: int = 1000, size: int = 1_000_000) -> Ring:
    ring = Ring(lines, size)
    ring.start(last)
    return ring


def held(ring: Ring, cursor: int = 0) -> list[int]:
    return [seq for seq, _ in ring.take(cursor, 10_000_000)]


def test_prefix_is_read_without_parsing() -> None:
    """Seq and end are told from the first bytes; a line that quotes an end is no end."""
    assert seq_of(raw(123_456)) == 123_456
    assert is_end(end(RUN, 5).encode())
    assert not is_end(log(RUN, 5, '{"seq":6,"type":"end"').encode())


@pytest.mark.parametrize(
    "rubbish", [b"hello", b"", b"{}", b'{"seq":', b'{"seq":x,"type":"log"}', b'{"type":"log"}']
)
def test_rubbish_is_refused(rubbish: bytes) -> None:
    """What is no event raises ValueError, which the feed logs and drops."""
    with pytest.raises(ValueError, match=r"not an event|subsection not found|invalid literal"):
        seq_of(rubbish)


def test_only_the_next_is_appended() -> None:
    """Older ones are dropped; what lies beyond a hole waits until the hole is filled."""
    merge = ring(last=2)
    assert merge.offer(raw(2) + b"\n" + raw(3))
    assert not merge.offer(raw(5))
    assert merge.holed
    assert held(merge, 2) == [3]
    merge.fill([(4, raw(4))])
    assert not merge.holed
    assert held(merge, 2) == [3, 4, 5]


def test_messages_before_the_start_wait() -> None:
    """What is published before the ring knows where to begin is kept."""
    merge = Ring(10, 1000)
    assert not merge.offer(raw(7))
    merge.start(6)
    merge.fill([])
    assert held(merge, 6) == [7]


def test_ranges_stand_for_what_they_cover() -> None:
    """`gap` and `truncated` continue a stream anywhere inside of their range."""
    cut = Event(9, EventType.TRUNCATED, 1, RUN, 1, data={"from": 4, "to": 9})
    for last in range(3, 9):
        assert contiguous([(9, cut.encode()), (10, raw(10))], last) == [(9, cut.encode()), (10, raw(10))]
    assert contiguous([(9, cut.encode())], 2) == []
    assert contiguous([(9, cut.encode())], 9) == []
    merge = ring(last=5)
    assert merge.offer(cut.encode() + b"\n" + raw(10))
    assert held(merge, 5) == [9, 10]


def test_the_end_is_noticed() -> None:
    """The ring knows the seq of the end."""
    merge = ring()
    merge.offer(raw(1) + b"\n" + end(RUN, 2).encode())
    assert merge.end_seq == 2


def test_bounded_in_lines_and_bytes() -> None:
    """Old events go, the floor follows; one that is over the bound alone stays."""
    merge = ring(lines=3)
    for seq in range(1, 100):
        merge.offer(raw(seq))
        assert held(merge, merge.floor) == list(range(max(1, seq - 2), seq + 1))
    big = log(RUN, 1, "x" * 5_000).encode()
    merge = ring(size=1_000)
    merge.offer(big)
    assert held(merge) == [1]
    merge.offer(raw(2))
    assert merge.floor in {0, 1}


def test_a_chunk_is_bounded_and_never_empty() -> None:
    """`take` gives at most the size asked for, but always one event if there is one."""
    merge = ring()
    for seq in range(1, 11):
        merge.offer(log(RUN, seq, "x" * 500).encode())
    size = len(log(RUN, 1, "x" * 500).encode())
    assert [seq for seq, _ in merge.take(0, 3 * size + 5)] == [1, 2, 3]
    assert [seq for seq, _ in merge.take(9, 1)] == [10]
    assert merge.take(10, 100) == []


def test_a_flood_beyond_a_hole_is_not_kept_for_ever() -> None:
    """The stash is bounded; what it lets go is in the tail."""
    merge = ring(size=2_000)
    for seq in range(5, 500):
        merge.offer(log(RUN, seq, "x" * 500).encode())
    assert merge.holed
    assert len(merge._stash) < 6


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 39), st.integers(1, 8)), max_size=60),
    st.integers(0, 5),
    st.integers(2, 50),
)
def test_any_order_of_any_messages(
    count: int, messages: list[tuple[int, int]], start: int, lines: int
) -> None:
    """Whatever is offered, in any order and any number of times, the ring is a stretch without a hole."""
    merge = ring(last=start, lines=lines)
    for first, length in messages:
        seqs = range(first + 1, min(first + length, count) + 1)
        if seqs:
            merge.offer(b"\n".join(raw(seq) for seq in seqs))
        got = held(merge, merge.floor)
        assert got == list(range(merge.floor + 1, (merge.last or 0) + 1))
    merge.fill([(seq, raw(seq)) for seq in range(1, count + 1)])
    assert merge.last == max(start, count)
    assert not merge.holed
