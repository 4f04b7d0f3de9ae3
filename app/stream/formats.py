"""The encodings of a stream: SSE frames, ndjson, bare text, WebSocket messages; and its filters.

An encoding makes one payload of many events. Equal requests share one object (`encoding`
is cached), so that the hub joins a batch once for all readers who want it the same way.

Progress bars: a program that draws one ends each state with a carriage return; the log keeps the states,
marked `cr`. In history an update is left out when a later line of the same attempt, step and stream
replaces it; live, where no later line is there yet, each is a line of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeVar

import orjson

from app.core.events import Entry, Event, EventType
from app.core.log_filter import EVERYTHING, LogFilter
from app.core.models import RunStatus
from tailrun.ansi import FIRST, strip_ansi
from tailrun.process.lines import Stream

T = TypeVar("T")
Encoding = Callable[[Sequence[Entry]], Any]

_MARK = b'"cr":true'  # quotes inside of a content are escaped, so this is never part of one
_MOST_HELD = 2000


class Format(StrEnum):
    """How a stream looks over HTTP."""

    SSE = "sse"
    NDJSON = "ndjson"
    TEXT = "text"

    @property
    def media_type(self) -> str:
        """The Content-Type."""
        return _MEDIA_TYPES[self]


_MEDIA_TYPES = {
    Format.SSE: "text/event-stream; charset=utf-8",
    Format.NDJSON: "application/x-ndjson",
    Format.TEXT: "text/plain; charset=utf-8",
}
_ACCEPTED = {
    "text/event-stream": Format.SSE,
    "application/x-ndjson": Format.NDJSON,
    "text/plain": Format.TEXT,
}
_VERDICTS = {
    RunStatus.SUCCEEDED: "DONE",
    RunStatus.CANCELLED: "STOPPED",
    RunStatus.TIMED_OUT: "TIMEOUT",
}
_WORDS = frozenset({Stream.MODEL, Stream.REASONING})
_ANSI_SIGNS = tuple(orjson.dumps(first)[1:-1] for first in FIRST)
"""The first characters of terminal sequences, as JSON encodes them."""


def accepted(accept: str) -> Format:
    """Return the first format that an `Accept` header names; SSE if it names none."""
    for item in accept.split(","):
        found = _ACCEPTED.get(item.partition(";")[0].strip().lower())
        if found is not None:
            return found
    return Format.SSE


@lru_cache(maxsize=256)
def encoding(
    form: Format, wanted: LogFilter = EVERYTHING, *, strip: bool = False, collapse: bool = False
) -> Encoding:
    """Return what makes one payload of bytes of some events, without those that `wanted` hides.

    `strip`: without terminal sequences. `collapse`: without updates that others of the payload
    replace; so what comes live comes as it is.
    """
    encode, select = _encoder(form, strip=strip), _selection(wanted)
    if collapse:
        return lambda entries: encode(collapse_entries(select(entries)))
    return encode if select is _all else lambda entries: encode(select(entries))


def replay_encoding(form: Format, wanted: LogFilter, *, strip: bool, collapse: bool) -> Encoding:
    """Return the same for one reader of what is over: updates are collapsed across payloads."""
    if not collapse:
        return encoding(form, wanted, strip=strip)
    return Collapsed(_encoder(form, strip=strip), _selection(wanted))


def messages(entries: Sequence[Entry]) -> list[str]:
    """Return a WebSocket message for each event: its JSON."""
    return [raw.decode() for _, raw in entries]


def bare_messages(entries: Sequence[Entry]) -> list[str]:
    """Return a WebSocket message for each line that the text format has."""
    return list(_lines(collapse_entries(entries)))


@lru_cache(maxsize=8)
def stripped(encode: Encoding) -> Encoding:
    """Return `encode` for contents without terminal sequences."""
    return lambda entries: encode([_strip(entry) for entry in entries])


def verdict(end: dict[str, Any]) -> str:
    """Return how a run ended, in the words of the text protocols, from its `end` event."""
    known = _VERDICTS.get(end["status"])
    if known is not None:
        return known
    error = end.get("error") or {}
    parts = ["FAILED", *(str(error[key]) for key in ("code", "message") if error.get(key))]
    return " ".join(": ".join(parts).split())


def _strip(entry: Entry) -> Entry:
    seq, raw = entry
    if not any(sign in raw for sign in _ANSI_SIGNS):
        return entry
    event = orjson.loads(raw)
    if event.get("content"):
        event["content"] = strip_ansi(event["content"])
    return seq, orjson.dumps(event)


def _sse(entries: Sequence[Entry]) -> bytes:
    return b"".join([b"id: %d\ndata: %b\n\n" % entry for entry in entries])


def _ndjson(entries: Sequence[Entry]) -> bytes:
    return b"".join([b"%b\n" % raw for _, raw in entries])


def _text(entries: Sequence[Entry]) -> bytes:
    return "".join([f"{text}{end}" for text, end in _pieces(entries)]).encode("utf-8", "replace")


def _lines(entries: Sequence[Entry]) -> Iterator[str]:
    return (text for text, _ in _pieces(entries))


def _pieces(entries: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    """Yield each text with its line end; a piece of a model's words has none, for its line continues."""
    for _, raw in entries:
        event = orjson.loads(raw)
        match event["type"]:
            case EventType.LOG:
                goes_on = event.get("split") and event.get("stream") in _WORDS
                yield event.get("content") or "", "" if goes_on else "\n"
            case EventType.END:
                yield verdict(event), "\n"
            case EventType.GAP:
                yield f"[lost: {event['from']} to {event['to']}]", "\n"
            case EventType.TRUNCATED:
                yield f"[truncated: {event['from']} to {event['to']}, {event.get('lines', '?')} lines]", "\n"
            case _:
                pass


_ENCODE: dict[Format, Encoding] = {Format.SSE: _sse, Format.NDJSON: _ndjson, Format.TEXT: _text}


def _all(entries: Sequence[Entry]) -> Sequence[Entry]:
    return entries


def _encoder(form: Format, *, strip: bool) -> Encoding:
    return stripped(_ENCODE[form]) if strip else _ENCODE[form]


def _selection(wanted: LogFilter) -> Callable[[Sequence[Entry]], Sequence[Entry]]:
    if wanted == EVERYTHING:
        return _all
    passes = wanted.rule()

    def kept(raw: bytes) -> bool:
        event = orjson.loads(raw)
        return passes(event["type"], event.get("level"), event.get("stream"), event.get("content"))

    return lambda entries: [entry for entry in entries if kept(entry[1])]


# -- progress bars --------------------------------------------------------------------------


def collapse(events: Sequence[Event]) -> tuple[list[Event], int | None]:
    """Return `events` without updates that are replaced, and the seq of the first that still may be."""
    return _collapse(events, _of_event, lambda event: event.seq)


def collapse_entries(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return encoded events without those that are updates which others among them replace."""
    if not any(_MARK in raw for _, raw in entries):
        return entries
    return _collapse(entries, _of_entry, _seq)[0]


class Collapsed:
    """An encoding for one reader of what is over: exact, wherever its chunks end.

    From an update on that something later may replace, events are held back until that is known;
    a call with no events gives them out. `select` leaves out what the reader does not want to see.
    """

    def __init__(self, encode: Encoding, select: Callable[[Sequence[Entry]], Sequence[Entry]]) -> None:
        self._encode = encode
        self._select = select
        self._held: list[Entry] = []

    def __call__(self, entries: Sequence[Entry]) -> Any:
        """Encode what is certain."""
        events, self._held = [*self._held, *self._select(entries)], []
        if not any(_MARK in raw for _, raw in events):
            return self._encode(events)
        kept, pending = _collapse(events, _of_entry, _seq)
        if entries and pending is not None and len(kept) <= _MOST_HELD:
            self._held = [entry for entry in kept if entry[0] >= pending]
            kept = [entry for entry in kept if entry[0] < pending]
        return self._encode(kept)


def _collapse(
    events: Sequence[T], look: Callable[[T], tuple[Hashable, bool] | None], seq: Callable[[T], int]
) -> tuple[list[T], int | None]:
    kept: list[T] = []
    followed: set[Hashable] = set()
    pending: int | None = None
    for event in reversed(events):
        found = look(event)
        if found is not None:
            line, update = found
            if update and line in followed:
                continue
            if update:
                pending = seq(event)
            followed.add(line)
        kept.append(event)
    return kept[::-1], pending


def _of_event(event: Event) -> tuple[Hashable, bool] | None:
    """Return which line of output an event continues, and whether it is an update; None for no line."""
    if event.type is not EventType.LOG:
        return None
    return (event.attempt, event.step, event.stream), event.data.get("cr") is True


def _of_entry(entry: Entry) -> tuple[Hashable, bool] | None:
    body = orjson.loads(entry[1])
    if body["type"] != EventType.LOG:
        return None
    return (body.get("attempt"), body.get("step"), body.get("stream")), body.get("cr") is True


def _seq(entry: Entry) -> int:
    return entry[0]
