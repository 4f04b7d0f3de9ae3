"""The one SSE parser: the grammar, and that the cuts between pieces never matter."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tailrun.sse import Frame, SSEParser


def parse(*pieces: bytes) -> list[Frame]:
    parser = SSEParser()
    return [frame for piece in pieces for frame in parser.feed(piece)]


def test_a_frame_has_its_id_and_data() -> None:
    assert parse(b"id: 7\ndata: hello\n\n") == [Frame("hello", "7")]


def test_comments_and_retry_make_no_frame() -> None:
    parser = SSEParser()
    assert parser.feed(b"retry: 2000\n\n: ping\n\n") == []
    assert parser.retry_ms == 2000


def test_data_lines_are_joined_and_only_one_space_is_taken() -> None:
    assert parse(b"data:a\ndata:  b\ndata\n\n") == [Frame("a\n b\n")]


def test_the_id_stays_for_later_frames() -> None:
    assert parse(b"id: 1\ndata: a\n\ndata: b\n\n") == [Frame("a", "1"), Frame("b", "1")]


def test_an_unfinished_frame_is_not_given_out() -> None:
    assert parse(b"id: 1\ndata: half") == []


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse(b"\xef\xbb", b"\xbfdata: x\n\n") == [Frame("x")]


def test_every_line_end_counts() -> None:
    assert parse(b"data: a\r\rdata: b\r\n\r\ndata: c\n\n") == [Frame("a"), Frame("b"), Frame("c")]


EVENT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=40)


@given(
    texts=st.lists(EVENT.filter(bool), max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
    cuts=st.lists(st.integers(0, 600), max_size=30),
)
def test_cuts_between_pieces_change_nothing(texts: list[str], end: str, cuts: list[int]) -> None:
    frames = [f": ping{end}id: {n}{end}data: {text}{end}{end}" for n, text in enumerate(texts)]
    whole = "".join(frames).encode()
    borders = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces = [whole[a:b] for a, b in pairwise(borders)]
    expected = [Frame(text, str(n)) for n, text in enumerate(texts)]
    assert parse(*pieces) == parse(whole) == parse(*(bytes([b]) for b in whole)) == expected


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_garbage_is_parsed_the_same_however_it_is_cut(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    assert parse(*pieces) == parse(whole)
