"""Progress bars in history: of the updates of one line, only the last state is shown.

A program that draws a bar ends each state with a carriage return; the log keeps them, marked `cr`.
An update is left out when a later line of the same attempt, step and stream is there to replace it.
Live, each update is a line of its own: nothing that replaces it is there yet.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import orjson

from app.core.events import Entry, Event, EventType

T = TypeVar("T")
Encode = Callable[[Sequence[Entry]], Any]

_MARK = b'"cr":true'  # quotes inside of a content are escaped, so this is never part of one
_MOST_HELD = 2000


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

    def __init__(self, encode: Encode, select: Callable[[Sequence[Entry]], Sequence[Entry]]) -> None:
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
