"""The archive of a run's log: ndjson in zstd, that people can read with `zstd -dc` and we can page.

A file is a row of zstd frames, each the wire shape of some hundred events, and at the end a frame
that decompressors skip: the index of the others, with what each holds. So a page costs a read of the
index and of the frames it needs, however long the log is.

    frame … frame   skippable: header, index as JSON, its length and a magic number
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from dataclasses import astuple, dataclass

import orjson
import zstandard

from app.core.errors import StorageError
from app.core.events import Event, EventType
from app.core.log_filter import EVERYTHING, BlockSummary, LogFilter
from app.storage.workspace import Workspace

ARCHIVE_NAME = "log.ndjson.zst"
"""Below the part of a run's workspace that is Tailrun's own."""

_SKIPPABLE = struct.Struct("<II")  # RFC 8878, section 3.1.2: magic number, bytes that follow
_SKIPPABLE_MAGIC = 0x184D2A50
_TRAILER = struct.Struct("<I8s")  # bytes of the index, magic number
_MAGIC = b"tailrun1"
_ZSTD_LEVEL = 3
_GUESS_BYTES = 32_768
_READ_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame's position and content."""

    offset: int
    length: int
    summary: BlockSummary


async def archive_bytes(pages: AsyncIterable[Sequence[Event]]) -> AsyncIterator[bytes]:
    """Yield the file of a log that comes in pages, none of them empty."""
    frames: list[_Frame] = []
    offset = 0
    async for events in pages:
        lines = b"".join(event.encode() + b"\n" for event in events)
        frame = zstandard.compress(lines, _ZSTD_LEVEL)
        frames.append(_Frame(offset, len(frame), BlockSummary.of(events)))
        offset += len(frame)
        yield frame
    index = orjson.dumps([(frame.offset, frame.length, *astuple(frame.summary)) for frame in frames])
    yield _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(index) + _TRAILER.size)
    yield index + _TRAILER.pack(len(index), _MAGIC)


class LogArchive:
    """Reads one archive; answers as `app.db.log_store.LogStore` does.

    Raises `NotFound` where there is none, `StorageError` when it can't be read or is damaged.
    """

    def __init__(self, workspace: Workspace, frames: list[_Frame]) -> None:
        self._workspace = workspace
        self._frames = frames

    @classmethod
    async def open(cls, workspace: Workspace) -> LogArchive:
        """Read the index of the archive in `workspace`."""
        size = (await workspace.stat(ARCHIVE_NAME)).size
        end = await _read(workspace, max(0, size - _GUESS_BYTES), size)
        if len(end) < _TRAILER.size:
            raise StorageError("the archive of this log is damaged: it is too short")
        length, magic = _TRAILER.unpack(end[-_TRAILER.size :])
        if magic != _MAGIC:
            raise StorageError("the archive of this log is damaged: its index is missing")
        start = size - _TRAILER.size - length
        if length + _TRAILER.size > len(end):
            end = await _read(workspace, start, size)
        index = orjson.loads(end[-_TRAILER.size - length : -_TRAILER.size])
        return cls(workspace, [_Frame(at, count, BlockSummary(*rest)) for at, count, *rest in index])

    async def page(self, after: int, limit: int, wanted: LogFilter) -> list[Event]:
        """Return up to `limit` events with a `seq` above `after`, in order, that pass `wanted`."""
        found: list[Event] = []
        some = [f for f in self._frames if f.summary.last_seq > after and f.summary.may_pass(wanted)]
        for together in _neighbours(some, limit if wanted == EVERYTHING else None):
            events = [event for event in await self._events(together) if event.seq > after]
            found += wanted.select(events)[: limit - len(found)]
            if len(found) == limit:
                break
        return found

    async def tail_cursor(self, n: int) -> int:
        """Return the `after` that yields the last `n` lines of output and what follows; 0 if fewer."""
        if n <= 0:
            return self._frames[-1].summary.last_seq if self._frames else 0
        missing = n
        for frame in reversed(self._frames):
            if frame.summary.lines >= missing:
                lines = [e.seq for e in await self._events([frame]) if e.type is EventType.LOG]
                return lines[-missing] - 1
            missing -= frame.summary.lines
        return 0

    async def _events(self, frames: Sequence[_Frame]) -> list[Event]:
        """Read adjacent frames."""
        start, end = frames[0].offset, frames[-1].offset + frames[-1].length
        raw = await _read(self._workspace, start, end)
        try:
            lines = [
                zstandard.decompress(raw[frame.offset - start : frame.offset - start + frame.length])
                for frame in frames
            ]
        except zstandard.ZstdError as error:
            raise StorageError(f"the archive of this log is damaged: {error}") from error
        return [Event.decode(line) for part in lines for line in part.splitlines()]


def _neighbours(frames: Sequence[_Frame], events: int | None) -> Iterator[list[_Frame]]:
    """Yield frames by the read: side by side, up to 1 MB or, if given, some more than `events`."""
    group: list[_Frame] = []
    for frame in frames:
        size = sum(other.length for other in group) + frame.length
        enough = events is not None and sum(other.summary.events for other in group) > events
        if group and (enough or size > _READ_BYTES or group[-1].offset + group[-1].length != frame.offset):
            yield group
            group = []
        group.append(frame)
    if group:
        yield group


async def _read(workspace: Workspace, start: int, end: int) -> bytes:
    return b"".join([piece async for piece in workspace.read(ARCHIVE_NAME, start, end)])
