"""The events of a run's stream: one by one (`Event`), or many lines as one object (`LineBatch`).

A program may print 100 000 lines a second. At that rate an `Event` per line, and a dictionary
to encode it, cost more than everything else on a line's way. So the lines of one read stay together
from the log writer to the wire and to the database. Both are `Written`, so that the code between them
need not know which of the two it has; how a line looks on the wire is defined by `Event.encode` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import orjson

from app.core.clock import format_ts, parse_ts
from tailrun.process.lines import Level, Line, Stream


class EventType(StrEnum):
    """Type of an event in a run's stream."""

    LOG = "log"
    STEP = "step"
    STATUS = "status"
    USAGE = "usage"
    ARTIFACT = "artifact"
    APPROVAL = "approval"
    MODEL = "model"
    MESSAGE = "message"
    PLAN = "plan"
    TRUNCATED = "truncated"
    GAP = "gap"
    END = "end"


NEVER_FILTERED = frozenset({EventType.END, EventType.GAP, EventType.TRUNCATED})
"""Event types that no `level` or `stream` filter hides."""


class Written(Protocol):
    """The input of a log writer: consecutive events from seq `first` to `seq`, at least one."""

    @property
    def first(self) -> int:
        """The seq of its first event."""
        ...

    @property
    def seq(self) -> int:
        """The seq of its last event."""
        ...

    @property
    def ts(self) -> int:
        """When its events were written, in microseconds."""
        ...

    @property
    def contents(self) -> Sequence[str]:
        """The texts of its lines of output; other events have none."""
        ...

    def encoded(self) -> list[bytes]:
        """Return the wire shape of each event."""
        ...

    def events(self) -> Sequence[Event]:
        """Return each event."""
        ...

    def plain(self) -> LineBatch | None:
        """Return the batch, if its lines differ only in content, level and stream: the fast way in."""
        ...


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a run's stream, and one row of `log_lines`.

    `seq` counts from 1 within the run; `ts` is in microseconds; `data` holds the fields
    that only this type has (`status`, `exit_code`, `error`, `from`, `to`, `path` …).
    """

    seq: int
    type: EventType
    ts: int
    run_id: str
    attempt: int
    level: Level | None = None
    stream: Stream | None = None
    step: str | None = None
    content: str | None = None
    data: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def first(self) -> int:
        """As `Written`: an event is a batch of one."""
        return self.seq

    @property
    def contents(self) -> Sequence[str]:
        """As `Written`."""
        return (self.content or "",) if self.type is EventType.LOG else ()

    def encoded(self) -> list[bytes]:
        """As `Written`."""
        return [self.encode()]

    def events(self) -> Sequence[Event]:
        """As `Written`."""
        return (self,)

    def plain(self) -> LineBatch | None:
        """As `Written`."""
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return the wire shape, `seq` first, absent fields left out."""
        body: dict[str, Any] = {
            "seq": self.seq,
            "type": self.type,
            "ts": format_ts(self.ts),
            "run_id": self.run_id,
            "attempt": self.attempt,
        }
        if self.level is not None:
            body["level"] = self.level
        if self.stream is not None:
            body["stream"] = self.stream
        if self.step is not None:
            body["step"] = self.step
        if self.content is not None:
            body["content"] = self.content
        if self.data:
            body.update(self.data)
        return body

    def encode(self) -> bytes:
        """Return the wire shape as one line of JSON, without a line end."""
        return orjson.dumps(self.as_dict())

    @classmethod
    def decode(cls, raw: bytes | str) -> Event:
        """Read the wire shape back; unknown fields land in `data`."""
        body: dict[str, Any] = orjson.loads(raw)
        level, stream = body.pop("level", None), body.pop("stream", None)
        return cls(
            seq=body.pop("seq"),
            type=EventType(body.pop("type")),
            ts=parse_ts(body.pop("ts")),
            run_id=body.pop("run_id"),
            attempt=body.pop("attempt"),
            level=Level(level) if level is not None else None,
            stream=Stream(stream) if stream is not None else None,
            step=body.pop("step", None),
            content=body.pop("content", None),
            data=body,
        )


Entry = tuple[int, bytes]
"""An event: its seq, and its JSON as it goes over the wire."""


SEQ_AT = len(b'{"seq":')


def seq_of(raw: bytes) -> int:
    """Return the seq of an encoded event from its prefix; ValueError if it is none."""
    if not raw.startswith(b'{"seq":'):
        raise ValueError(f"not an event: {raw[:40]!r}")
    return int(raw[SEQ_AT : raw.index(b",", SEQ_AT)])


def with_usage(used: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    """Return an attempt's CPU and wall time with a step's added; of memory the largest counts.

    What a call of a model took is kept with the call, and is not counted here.
    """
    if "cpu_s" not in step:
        return used
    return {
        "cpu_s": round(used.get("cpu_s", 0) + step.get("cpu_s", 0), 3),
        "wall_s": round(used.get("wall_s", 0) + step.get("wall_s", 0), 3),
        "max_rss_bytes": max(used.get("max_rss_bytes", 0), step.get("max_rss_bytes", 0)),
    }


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
    def contents(self) -> list[str]:
        """As `Written`."""
        return [line.content for line in self.lines]

    def plain(self) -> LineBatch | None:
        """As `Written`: lines that have a `src` are not."""
        return self if self.lines[0].src is None else None

    def encoded(self) -> list[bytes]:
        """Return what `Event.encode` returns for each line."""
        if self.plain() is None:
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
        """As `Written`: one for each line."""
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
        """Return what is between the seq and the content of such a line: `content` is the last field."""
        empty = Event(0, EventType.LOG, self.ts, self.run_id, self.attempt, level, stream, self.step, "")
        return empty.encode()[len(_SEQ) + 1 : -len(_CONTENT)]
