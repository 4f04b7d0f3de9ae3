"""Which events a reader of a log asked for; and what a block of events may hold, without opening it.

The route that reads the parameters makes the one `LogFilter`; all below it are given it.

The database filters its rows in SQL. Blocks (chunks in the database, frames of an archive) are
filtered here, by the same rules: whatever form a log has, the same question has the same answer.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.core.events import NEVER_FILTERED, Event, EventType
from tailrun.process.lines import Level, Stream

LEVEL_BITS = {Level.DEBUG: 1, Level.INFO: 2, Level.WARNING: 4, Level.ERROR: 8}
STREAM_BITS = {stream: 1 << n for n, stream in enumerate(Stream)}
"""Stored with every block: never give a bit another meaning."""


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Lines at least as severe as `level`, of `stream`, whose content holds `q`.

    ASCII letters of `q` match in either case, others as they are: that is what both databases
    can do alike. `end`, `gap` and `truncated` pass every filter; another event without a level, a
    stream or a content does not pass the filter for it.
    """

    level: Level | None = None
    stream: Stream | None = None
    q: str | None = None

    @property
    def levels(self) -> list[Level] | None:
        """The levels that pass; None when all do."""
        return None if self.level is None else list(Level)[list(Level).index(self.level) :]

    @property
    def level_bits(self) -> int:
        """The bits of the levels that pass; 0 when all do."""
        return sum(LEVEL_BITS[level] for level in self.levels or ())

    @property
    def stream_bits(self) -> int:
        """The bit of the stream that passes; 0 when all do."""
        return 0 if self.stream is None else STREAM_BITS[self.stream]

    def select(self, events: Sequence[Event]) -> list[Event]:
        """Return those of `events` that pass, in order."""
        if self.level is None and self.stream is None and not self.q:
            return list(events)
        passes = self.rule()
        return [event for event in events if passes(event.type, event.level, event.stream, event.content)]

    def rule(self) -> Callable[[str, str | None, str | None, str | None], bool]:
        """Return what says of an event's type, level, stream and content whether it passes."""
        wanted = folded(self.q) if self.q else b""
        levels = None if self.levels is None else frozenset(self.levels)

        def passes(kind: str, level: str | None, stream: str | None, content: str | None) -> bool:
            return kind in NEVER_FILTERED or (
                (levels is None or level in levels)
                and (self.stream is None or stream == self.stream)
                and (not wanted or (content is not None and wanted in folded(content)))
            )

        return passes


EVERYTHING = LogFilter()
"""Hides nothing."""


@dataclass(frozen=True, slots=True)
class BlockSummary:
    """The summary of a block of events: enough to pass over it, and to count lines from the end."""

    first_seq: int
    last_seq: int
    events: int
    lines: int
    levels: int
    streams: int
    marks: bool
    """Whether an event is in it that no filter hides."""

    @classmethod
    def of(cls, events: Sequence[Event]) -> BlockSummary:
        """Sum up `events`, of which there is at least one."""
        levels = {event.level for event in events} - {None}
        streams = {event.stream for event in events} - {None}
        return cls(
            first_seq=events[0].seq,
            last_seq=events[-1].seq,
            events=len(events),
            lines=sum(event.type is EventType.LOG for event in events),
            levels=sum(LEVEL_BITS[level] for level in levels if level),
            streams=sum(STREAM_BITS[stream] for stream in streams if stream),
            marks=any(event.type in NEVER_FILTERED for event in events),
        )

    def may_pass(self, wanted: LogFilter) -> bool:
        """Whether any of the block's events can pass `wanted`."""
        level, stream = wanted.level_bits, wanted.stream_bits
        return self.marks or (
            (not level or self.levels & level > 0) and (not stream or self.streams & stream > 0)
        )


def folded(text: str) -> bytes:
    """Return UTF-8 to search in any case: ASCII letters in lower case, for `bytes.lower` touches no other."""
    return text.encode("utf-8", "replace").lower()
