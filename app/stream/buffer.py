"""What a log writer holds: events on their way to Redis and to the database, two ways that do not wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from app.core.events import Written

_CHUNK_EVENTS = 1024
_CHUNK_BYTES = 512_000


class WriteBuffer:
    """Events numbered so far that lack one of the two ways, from `seq` on.

    `seq` is the last number given, `published` and `committed` how far each way has come, and
    `bytes` what those not committed hold, as they are encoded; `unpublished_bytes` the others.
    """

    def __init__(self, seq: int) -> None:
        self.bytes = self.unpublished_bytes = 0
        self._unpublished: deque[bytes] = deque()
        self._uncommitted: deque[tuple[Written, int]] = deque()
        self.start(seq)

    def start(self, seq: int) -> None:
        """Begin after `seq`."""
        self.seq = self.published = self.committed = seq

    @property
    def unpublished(self) -> int:
        """How many events wait for Redis."""
        return len(self._unpublished)

    @property
    def uncommitted(self) -> int:
        """How many events wait for the database."""
        return self.seq - self.committed

    def add(self, written: Written, *, publish: bool = True) -> None:
        """Take what follows `seq`; what is not to be published yet comes with `publish` later."""
        raws = written.encoded()
        size = sum(map(len, raws))
        self.seq = written.seq
        self.bytes += size
        self._uncommitted.append((written, size))
        if publish:
            self._unpublished.extend(raws)
            self.unpublished_bytes += size

    def publish(self, raw: bytes) -> None:
        """Let an encoded event follow what waits for Redis."""
        self._unpublished.append(raw)
        self.unpublished_bytes += len(raw)

    def chunk(self) -> list[bytes]:
        """Return what one call takes to Redis: events from `published + 1` on."""
        size, count = 0, 0
        for raw in islice(self._unpublished, _CHUNK_EVENTS):
            if size > _CHUNK_BYTES:
                break
            size += len(raw)
            count += 1
        return list(islice(self._unpublished, count))

    def published_to(self, seq: int) -> None:
        """Let go of what Redis has, or need not get any more."""
        for _ in range(min(seq - self.published, len(self._unpublished))):
            self.unpublished_bytes -= len(self._unpublished.popleft())
            self.published += 1

    def batch(self, events: int | None) -> list[Written]:
        """Return what one commit takes: about so many `events`, or all."""
        if events is None:
            return [written for written, _ in self._uncommitted]
        found: list[Written] = []
        for written, _ in self._uncommitted:
            found.append(written)
            if written.seq - self.committed >= events:
                break
        return found

    def committed_batch(self, batch: Sequence[Written]) -> None:
        """Let go of what the database has."""
        for written in batch:
            self.bytes -= self._uncommitted.popleft()[1]
            self.committed = written.seq
