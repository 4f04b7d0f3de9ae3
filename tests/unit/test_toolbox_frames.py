"""Frames hold exactly what was printed, whatever that was and however it was read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.wrapped_program import decode, joined

from toolbox.frames import FRAME_BYTES, PART_CHARS, Frames, Stream

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([b"\n", b"\r", b"\r\n", b"\0", b"\xff\xfe", "é\u2028😀".encode(), b'"\\', b"\x1b["]),
        st.builds(bytes.__mul__, st.sampled_from([b"x", b"\0", "😀".encode()]), st.integers(0, 20_000)),
    ),
    max_size=12,
)  # fmt: skip


@given(PIECES, st.lists(st.integers(0, 11)))
def test_joined_parts_are_what_was_printed(pieces: list[bytes], pauses: list[int]) -> None:
    """Cut anywhere, held back or let go: the text is the same, in frames that no runtime splits."""
    frames = Frames()
    stream, raw = Stream(frames, "o"), b""
    for n, piece in enumerate(pieces):
        stream.feed(piece, n)
        if n in pauses:
            stream.flush(n)
        raw += frames.take()
    stream.end(99)
    read = decode(raw + frames.take())
    text = b"".join(pieces).decode(errors="replace")
    assert joined(read, "o") == text
    assert stream.bytes == len(b"".join(pieces))
    assert stream.lines == text.count("\n") + bool(text and not text.endswith("\n"))
    assert all("p" not in frame for frame in read[-1:])
    assert sum("u" in frame for frame in read) == bool(text and not text.endswith("\n"))


@pytest.mark.parametrize("character", ["x", "\0", "é", "😀", '"', "\u2028"])
def test_a_long_line_is_cut_to_frames_that_fit(character: str) -> None:
    """No escape and no alphabet makes a frame longer than a runtime passes in one piece."""
    frames = Frames()
    stream = Stream(frames, "e")
    stream.feed((character * 50_000 + "\n").encode(), 1)
    raw = frames.take()
    read = decode(raw)
    assert max(map(len, raw.splitlines(keepends=True))) <= FRAME_BYTES
    assert joined(read, "e") == character * 50_000 + "\n"
    assert [frame.get("p") for frame in read] == [1] * (len(read) - 1) + [None]
    if character == "x":
        assert len(read) == -(-50_000 // PART_CHARS)


def test_little_is_held_back() -> None:
    """A line without end takes no memory."""
    frames = Frames()
    stream = Stream(frames, "o")
    size = 0
    for _ in range(100):
        stream.feed(b"x" * 65_536, 1)
        raw = frames.take()
        size += raw.count(b"x")
        assert len(raw) < 100_000
    assert size >= 100 * 65_536 - PART_CHARS


def test_feed_says_when_a_new_line_is_held() -> None:
    """The wrapper sets its clock by that: once for each beginning, not at every byte of it."""
    stream = Stream(Frames(), "o")
    assert stream.feed(b"whole\n", 1) is False
    assert stream.feed(b"beg", 1) is True
    assert stream.feed(b"inning", 1) is False
    assert stream.feed(b" end\nnext", 1) is True
    assert stream.feed(b"\n", 1) is False


def test_a_character_cut_by_a_read_is_not_broken() -> None:
    """Decoding is incremental; a flush in the middle waits for the rest of the character."""
    frames = Frames()
    stream = Stream(frames, "o")
    for byte in "a😀b".encode():
        stream.feed(bytes([byte]), 1)
        stream.flush(1)
    stream.end(1)
    assert joined(decode(frames.take()), "o") == "a😀b"


def test_news_is_short() -> None:
    """A reason that somebody made long can't make a frame too long."""
    frames = Frames()
    frames.say("failed", "\0" * 100_000)
    assert decode(frames.take())[0]["m"] == "\0" * 2000
