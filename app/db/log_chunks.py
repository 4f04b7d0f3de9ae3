"""Between events and a chunk: up to 200 events of an ended run in one row of `log_chunks`.

The body is JSON, a list per column (alike values are together, times and numbers as differences),
compressed with zstd. docs/decisions/0006-log-storage.md has the figures. `format` names the layout:
a new one gets a new number, and the old ones stay readable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

import orjson
import zstandard

from app.core.errors import StorageError
from app.core.events import Event, EventType
from app.core.log_filter import BlockSummary, folded
from app.db.lenient import word
from tailrun.process.lines import Level, Stream

CHUNK_EVENTS = 200
CHUNK_BYTES = 1_000_000
"""A chunk takes no further event once its contents are over this."""

_FORMAT = 1
_ZSTD_LEVEL = 1
_LEVELS = {level.value: level for level in Level}
_STREAMS = {stream.value: stream for stream in Stream}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A row of `log_chunks`."""

    run_id: str
    summary: BlockSummary
    body: bytes

    def values(self) -> dict[str, Any]:
        """Return the row by column."""
        return {"run_id": self.run_id, **asdict(self.summary), "format": _FORMAT, "body": self.body}


def pack(events: Sequence[Event]) -> Chunk:
    """Make a chunk of `events`: of one run, in order, at least one."""
    columns = {
        "seq": _differences([event.seq for event in events]),
        "type": [event.type.value for event in events],
        "ts": _differences([event.ts for event in events]),
        "attempt": [event.attempt for event in events],
        "level": [event.level and event.level.value for event in events],
        "stream": [event.stream and event.stream.value for event in events],
        "step": [event.step for event in events],
        "content": [event.content for event in events],
        "data": [event.data or None for event in events],
    }
    body = zstandard.compress(orjson.dumps(columns), _ZSTD_LEVEL)
    return Chunk(events[0].run_id, BlockSummary.of(events), body)


def unpack(run_id: str, layout: int, body: bytes) -> bytes:
    """Return the columns of a chunk, for `may_hold` and `events_of`.

    `StorageError` when a newer release wrote it.
    """
    if layout != _FORMAT:
        raise StorageError(f"{run_id}: its log is stored in format {layout}, which a newer release reads")
    return zstandard.decompress(body)


def may_hold(columns: bytes, q: str) -> bool:
    """Whether a content may hold `q`: ten times faster than to look at each."""
    return folded(orjson.dumps(q)[1:-1].decode()) in columns.lower()


def events_of(run_id: str, columns: bytes) -> list[Event]:
    """Return the events of a chunk."""
    return list(_events(run_id, orjson.loads(columns)))


def _events(run_id: str, columns: dict[str, list[Any]]) -> Iterator[Event]:
    names = ("type", "attempt", "level", "stream", "step", "content", "data")
    numbers = zip(accumulate(columns["seq"]), accumulate(columns["ts"]), strict=True)
    rest = zip(*(columns[name] for name in names), strict=True)
    for (seq, ts), (kind, attempt, level, stream, step, content, data) in zip(numbers, rest, strict=True):
        yield Event(
            seq=seq,
            type=word(EventType, kind),
            ts=ts,
            run_id=run_id,
            attempt=attempt,
            level=None if level is None else _LEVELS[level],
            stream=None if stream is None else _STREAMS[stream],
            step=step,
            content=content,
            data=data or {},
        )


def _differences(numbers: list[int]) -> list[int]:
    """Return the first number, then what each adds to the one before."""
    return [numbers[0], *(later - earlier for earlier, later in pairwise(numbers))]
