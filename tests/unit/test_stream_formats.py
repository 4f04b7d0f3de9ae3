"""The encodings of a stream and its filters."""

from __future__ import annotations

import pytest
from support.stream_fixtures import end, log

from app.core.events import Event, EventType
from app.core.log_filter import LogFilter
from app.stream.formats import Format, accepted, bare_messages, encoding, messages, verdict
from tailrun.process.lines import Level, Stream

RUN = "r"


def entries(*events: Event) -> list[tuple[int, bytes]]:
    return [(event.seq, event.encode()) for event in events]


STATUS = Event(1, EventType.STATUS, 1, RUN, 0, data={"status": "queued"})
GAP = Event(5, EventType.GAP, 1, RUN, 1, data={"from": 3, "to": 5})
CUT = Event(9, EventType.TRUNCATED, 1, RUN, 1, data={"from": 6, "to": 9, "lines": 4, "bytes": 100})
ALL = entries(STATUS, log(RUN, 2, "ü\x1b[31m"), GAP, CUT, log(RUN, 10, ""), end(RUN, 11))


def test_sse_frames() -> None:
    """An id, the event, an empty line; no event name."""
    expected = b"".join(b"id: %d\ndata: %b\n\n" % entry for entry in ALL)
    assert encoding(Format.SSE)(ALL) == expected


def test_ndjson_lines() -> None:
    """An event a line."""
    assert encoding(Format.NDJSON)(ALL).splitlines() == [raw for _, raw in ALL]


def test_bare_text() -> None:
    """Lines as they were, brackets for what is missing, and the last word."""
    lines = ["ü\x1b[31m", "[lost: 3 to 5]", "[truncated: 6 to 9, 4 lines]", "", "DONE"]
    assert encoding(Format.TEXT)(ALL).decode() == "".join(f"{line}\n" for line in lines)
    assert bare_messages(ALL) == lines
    assert messages(ALL) == [raw.decode() for _, raw in ALL]


def test_a_models_words_are_one_line_in_bare_text() -> None:
    """Also over several payloads; a program's line that was too long stays in pieces."""
    pieces = [("I ", True), ("see.", True), ("", False), ("Next.", False)]
    said = entries(
        *(
            Event(seq, EventType.LOG, 1, RUN, 1, stream=Stream.MODEL, content=text, data=_split(split))
            for seq, (text, split) in enumerate(pieces, 1)
        )
    )
    text = encoding(Format.TEXT)
    assert text(said[:1]) + text(said[1:]) == b"I see.\nNext.\n"
    long = Event(1, EventType.LOG, 1, RUN, 1, stream=Stream.STDOUT, content="x", data=_split(True))
    assert text(entries(long)) == b"x\n"


def _split(split: bool) -> dict[str, bool]:
    return {"split": True} if split else {}


def test_equal_requests_share_an_encoding() -> None:
    """The hub shares payloads between viewers whose encodings are the same object."""
    assert encoding(Format.SSE, LogFilter(Level.ERROR)) is encoding(Format.SSE, LogFilter(Level.ERROR))


@pytest.mark.parametrize(
    ("level", "stream", "left"),
    [
        (Level.DEBUG, None, [2, 3, 4, 5, 9]),
        (Level.WARNING, None, [3, 4, 5, 9]),
        (Level.ERROR, None, [4, 5, 9]),
        (None, Stream.STDERR, [3, 5, 9]),
        (Level.ERROR, Stream.STDOUT, [4, 5, 9]),
        (None, Stream.SYSTEM, [5, 9]),
    ],
)
def test_filters(level: Level | None, stream: Stream | None, left: list[int]) -> None:
    """Levels are "at least", ranges and the end always pass, what has no such field does not."""
    given = entries(
        STATUS,
        log(RUN, 2),
        log(RUN, 3, level="warning", stream="stderr"),
        log(RUN, 4, level="error"),
        GAP,
        CUT,
    )
    lines = encoding(Format.NDJSON, LogFilter(level, stream))(given).splitlines()
    assert [seq for seq, raw in given if raw in lines] == left


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Format.SSE),
        ("*/*", Format.SSE),
        ("text/plain", Format.TEXT),
        ("Text/Plain;q=0.9, */*", Format.TEXT),
        ("text/html, application/x-ndjson", Format.NDJSON),
        ("text/event-stream, text/plain", Format.SSE),
    ],
)
def test_accept(accept: str, form: Format) -> None:
    """The first known type of the header counts."""
    assert accepted(accept) is form


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"status": "succeeded"}, "DONE"),
        ({"status": "cancelled", "error": {"code": "cancelled"}}, "STOPPED"),
        ({"status": "timed_out"}, "TIMEOUT"),
        ({"status": "failed", "error": None}, "FAILED"),
        ({"status": "failed", "error": {"code": "x", "message": "a\n b"}}, "FAILED: x: a b"),
    ],
)
def test_verdict(body: dict[str, object], word: str) -> None:
    """How a run ended, on one line."""
    assert verdict(body) == word
