"""Many log lines as one object, from the log writer to the wire and to the database.

A program may print 100 000 lines a second. At that rate an `Event` per line, and a dictionary
to encode it, cost more than everything else on a line's way. What the lines of one read have
in common is kept once here; how they look on the wire is still said by `Event.encode` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from app.models import Event, EventType, Level, Line, Stream

SRC = "src"
"""The field of a log event that says where the line was in the log of the program's pod."""
_SEQ = b'{"seq":'
_CONTENT = b'""}'


@dataclass(frozen=True, slots=True)
class LineBatch:
    """Consecutive `log` events of one attempt, step and moment, from seq `first` on.

    There is at least one line, and none is marked `cr` or `split`: those are events of their own.
    Either all lines have a `src`, or none has.
    """

    first: int
    ts: int
    run_id: str
    attempt: int
    step: str | None
    lines: Sequence[Line]

    @property
    def seq(self) -> int:
        """The seq of the last line: a batch ends where an event does."""
        return self.first + len(self.lines) - 1

    @property
    def sourced(self) -> bool:
        """Whether the lines have a `src`."""
        return self.lines[0].src is not None

    def encode(self) -> list[bytes]:
        """Return what `Event.encode` returns for each line."""
        if self.sourced:
            return [event.encode() for event in self.events()]
        out = list[bytes]()
        level: Level | None = None
        stream: Stream | None = None
        head, seq, dumps = b"", self.first, orjson.dumps
        for _stream, content, _level, _, _, _ in self.lines:
            if _level is not level or _stream is not stream:
                level, stream = _level, _stream
                head = self._head(level, stream)
            out.append(b"%b%d%b%b}" % (_SEQ, seq, head, dumps(content)))
            seq += 1
        return out

    def events(self) -> list[Event]:
        """Return an event for each line."""
        kind, ts, run_id, attempt, step = EventType.LOG, self.ts, self.run_id, self.attempt, self.step
        return [
            Event(
                seq,
                kind,
                ts,
                run_id,
                attempt,
                level,
                stream,
                step,
                content,
                {} if src is None else {SRC: src},
            )
            for seq, (stream, content, level, _, _, src) in enumerate(self.lines, self.first)
        ]

    def _head(self, level: Level, stream: Stream) -> bytes:
        """Return what stands between the seq and the content of such a line: `content` is the last field."""
        empty = Event(0, EventType.LOG, self.ts, self.run_id, self.attempt, level, stream, self.step, "")
        return empty.encode()[len(_SEQ) + 1 : -len(_CONTENT)]


Written = Event | LineBatch
"""What a log writer commits, in order of `seq`."""


def first_seq(written: Written) -> int:
    """Return the seq of an event, or of a batch's first line."""
    return written.first if isinstance(written, LineBatch) else written.seq
