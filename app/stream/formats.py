"""The encodings of a stream: SSE frames, ndjson, bare text, WebSocket messages; and its filters.

An encoding makes one payload of many events. Equal requests share one object (`encoding`
is cached), so that the hub joins a batch once for all readers who want it the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any

import orjson

from app.core.events import EventType
from app.core.log_filter import EVERYTHING, LogFilter
from app.core.models import RunStatus
from app.stream.progress import Collapsed, collapse_entries
from tailrun.ansi import FIRST, strip_ansi

Entry = tuple[int, bytes]
Encoding = Callable[[Sequence[Entry]], Any]


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
_ANSI_SIGNS = tuple(orjson.dumps(first)[1:-1] for first in FIRST)
"""How the first characters of terminal sequences stand in JSON."""


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
    return "".join([f"{line}\n" for line in _lines(entries)]).encode("utf-8", "replace")


def _lines(entries: Sequence[Entry]) -> Iterator[str]:
    for _, raw in entries:
        event = orjson.loads(raw)
        match event["type"]:
            case EventType.LOG:
                yield event.get("content") or ""
            case EventType.END:
                yield verdict(event)
            case EventType.GAP:
                yield f"[lost: {event['from']} to {event['to']}]"
            case EventType.TRUNCATED:
                yield f"[truncated: {event['from']} to {event['to']}, {event.get('lines', '?')} lines]"
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
