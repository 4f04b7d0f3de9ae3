"""Lines are the same however reads cut the bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrun.process.lines import Level, Line, Stream
from tailrun.process.output import UPDATE_S, LineSplitter

OUT = Stream.STDOUT

PIECES = st.sampled_from(
    [
        b"\n",
        b"\r",
        b"\r\n",
        b" ",
        b"a",
        b"bc",
        b"\xe2\x82\xac",
        b"\xe2\x82",
        b"\xff",
        b"\0",
        b"  x",
        b"ERROR: ",
        b"\t",
    ],
)
OUTPUT = st.lists(PIECES, max_size=40).map(b"".join)


def split(data: bytes, cuts: Sequence[int] = (), limit: int = 1 << 20) -> list[Line]:
    splitter, out = LineSplitter(OUT, max_line_bytes=limit), list[Line]()
    for piece in pieces(data, cuts):
        out += splitter.feed(piece, 0.0)
    return out + splitter.finish()


def pieces(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    at = 0
    for cut in sorted({cut % (len(data) + 1) for cut in cuts}):
        if cut > at:
            yield data[at:cut]
            at = cut
    if at < len(data):
        yield data[at:]


def texts(data: bytes) -> list[str]:
    return [line.content for line in split(data)]


@given(OUTPUT, st.lists(st.integers(0, 1000), max_size=30), st.sampled_from([4, 5, 7, 1000]))
def test_cutting_anywhere_changes_nothing(data: bytes, cuts: list[int], limit: int) -> None:
    assert split(data, cuts, limit) == split(data, (), limit)


@given(OUTPUT, st.sampled_from([4, 5, 7, 1000]))
def test_byte_by_byte_is_the_same_as_at_once(data: bytes, limit: int) -> None:
    assert split(data, range(len(data)), limit) == split(data, (), limit)


@given(OUTPUT, st.lists(st.floats(0, 1), min_size=40, max_size=80))
def test_ordinary_lines_do_not_depend_on_time(data: bytes, steps: list[float]) -> None:
    """Only which updates are shown does; they are paced, and the last one is never lost."""
    splitter, out, now, shown = LineSplitter(OUT), list[Line](), 0.0, list[float]()
    for byte, step in zip(pieces(data, range(len(data))), steps * 3, strict=False):
        now += step
        for line in (*splitter.tick(now), *splitter.feed(byte, now)):
            out.append(line)
            if line.cr:
                shown.append(now)
    out += splitter.finish()
    assert [line for line in out if not line.cr] == [line for line in split(data) if not line.cr]
    assert all(later - earlier >= UPDATE_S - 1e-9 for earlier, later in pairwise(shown))


@given(st.text())
def test_text_comes_through_line_by_line(text: str) -> None:
    plain = text.replace("\r", "").replace("\0", "")
    expected = plain.split("\n")
    if plain == "" or plain.endswith("\n"):
        expected.pop()
    assert texts(plain.encode()) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\r\r\n", ["a"]),
        (b"  lead and trail \t \n", ["  lead and trail \t "]),
        ("a\u2028b\u2029c\x0bd\x0ce\x85f\n".encode(), ["a\u2028b\u2029c\x0bd\x0ce\x85f"]),
        (b"bad \xff\xfe utf\xe2\x82\nok", ["bad �� utf�", "ok"]),
        (b"nul\0l\n", ["nul�l"]),
        (b"no end", ["no end"]),
    ],
)
def test_where_lines_end(data: bytes, expected: list[str]) -> None:
    assert texts(data) == expected


def test_carriage_returns_make_updates_and_the_line_feed_the_line() -> None:
    assert split(b"10%\r20%\r30%\ndone\n") == [Line(OUT, "10%", cr=True), Line(OUT, "30%"), Line(OUT, "done")]


def test_a_bar_that_was_wiped_leaves_its_blank_line() -> None:
    assert split(b"99%\r     \r\nnext") == [Line(OUT, "99%", cr=True), Line(OUT, " " * 5), Line(OUT, "next")]


def test_an_unfinished_bar_is_kept_as_the_last_line() -> None:
    assert split(b"10%\r20%\r") == [Line(OUT, "10%", cr=True), Line(OUT, "20%")]


def test_a_suppressed_update_is_shown_when_it_stands() -> None:
    splitter = LineSplitter(OUT)
    assert splitter.feed(b"1\r2\r3\r4", 10.0) == [Line(OUT, "1", cr=True)]
    assert splitter.due == pytest.approx(10.2)
    assert splitter.tick(10.1) == []
    assert splitter.tick(10.2) == [Line(OUT, "3", cr=True)]
    assert splitter.due is None


def test_an_update_at_the_end_of_a_read_may_still_be_a_line_end() -> None:
    splitter = LineSplitter(OUT)
    assert splitter.feed(b"line\r", 0.0) == []
    assert splitter.feed(b"\n50%\r", 0.0) == [Line(OUT, "line")]
    assert splitter.tick(UPDATE_S) == [Line(OUT, "50%", cr=True)]
    assert splitter.feed(b"60%", 1.0) == []
    assert splitter.finish() == [Line(OUT, "60%")]


def test_an_update_that_was_shown_is_still_the_line_when_the_line_feed_comes() -> None:
    splitter = LineSplitter(OUT)
    splitter.feed(b"100%\r", 0.0)
    assert splitter.tick(5.0) == [Line(OUT, "100%", cr=True)]
    assert splitter.feed(b"\n", 6.0) == [Line(OUT, "100%")]


def test_a_line_of_the_greatest_length_is_whole_and_one_byte_more_is_not() -> None:
    assert split(b"x" * 10 + b"\r\n", limit=10) == [Line(OUT, "x" * 10)]
    assert split(b"x" * 11 + b"\n", limit=10) == [Line(OUT, "x" * 10, split=True), Line(OUT, "x")]


def test_a_cut_never_goes_through_a_character_and_keeps_blanks_and_level() -> None:
    assert split("ERROR: €€  €".encode(), limit=9) == [
        Line(OUT, "ERROR: ", Level.ERROR, split=True),
        Line(OUT, "€€  ", Level.ERROR, split=True),
        Line(OUT, "€", Level.ERROR),
    ]


def test_a_long_line_is_handed_out_while_it_grows() -> None:
    splitter, seen = LineSplitter(OUT, max_line_bytes=1000), 0
    for _ in range(50):
        seen += sum(len(line.content) for line in splitter.feed(b"y" * 100, 0.0))
    assert seen == 4000


def test_blanks_at_the_end_of_a_line_are_text() -> None:
    """The last empty columns of a table, two blanks of Markdown, a blank line of a diff."""
    assert texts(b"a\tb\t\t\nhard break  \r\n \nend ") == ["a\tb\t\t", "hard break  ", " ", "end "]
