"""One run's live events in this process, shared by all of its readers.

Owns the run's ring, brings it up to date (`catch_up`) whenever messages may have been missed,
and wakes the readers. A reader is a cursor: waking costs a future each, whatever the number
of lines, and readers at the same cursor with the same encoding share one joined payload.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from app.core.errors import StorageError
from app.core.events import Entry
from app.core.models import RunStatus
from app.core.telemetry import get_logger
from app.stream.history import Backfill
from app.stream.ring import Ring

_log = get_logger(__name__)

Encode = Callable[[Sequence[Entry]], Any]
"""Makes a payload of some events, falsy when all are filtered out; equal encodings must compare equal."""

CHUNK_BYTES = 256_000
_CROWD = 32
_MEMO = 8


@dataclass(frozen=True, slots=True)
class FeedLimits:
    """Bounds of one run's ring, and how long in seconds many readers' wake-ups are put together."""

    ring_lines: int = 20_000
    ring_bytes: int = 4_000_000
    linger_s: float = 0.0


class RunFeed:
    """The ring of one run and those who wait for it to grow."""

    def __init__(self, run_id: str, backfill: Backfill, limits: FeedLimits) -> None:
        self.run_id = run_id
        self.readers = 0
        self._backfill = backfill
        self._ring = Ring(limits.ring_lines, limits.ring_bytes)
        self._linger_s = limits.linger_s
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()
        self._grown_at = self._woken_at = 0.0
        self._wake_later: asyncio.TimerHandle | None = None
        self._memo: dict[tuple[int, Encode], tuple[int, Any]] = {}
        self._catching_up: asyncio.Task[None] | None = None
        self._again = False
        self._ended_at: int | None = None

    def silent_for(self, seconds: float) -> bool:
        """Whether it should be compared: nothing came for a while, or something is known to be missing."""
        ring = self._ring
        return ring.last is None or ring.holed or self._loop.time() - self._grown_at >= seconds

    def message(self, payload: bytes) -> None:
        """Take a message of the channel."""
        before = self._ring.last
        try:
            whole = self._ring.offer(payload)
        except ValueError as error:
            _log.warning("not an event on a log channel", run_id=self.run_id, error=str(error))
            return
        if not whole:
            self.catch_up()
        if self._ring.last != before:
            self._grown()

    def confirmed(self) -> None:
        """Subscribed, for the first time or again: what was published before may be missing."""
        self.catch_up()

    def compare(self, head: int, status: RunStatus | None = None) -> None:
        """Take note of what the tail or the database says the newest seq is."""
        if status is not None and status.terminal:
            self._ended_at = head
        last = self._ring.last
        if last is None or head > last or self._ring.holed:
            self.catch_up()
        elif self._ended_at is not None:
            self.wake()

    def ended(self, cursor: int) -> bool:
        """Whether a reader at `cursor` has all that this run will ever have."""
        end = self._ring.end_seq or self._ended_at
        return end is not None and cursor >= end

    def has_more(self, cursor: int) -> bool:
        """Whether the ring holds something after `cursor`."""
        return self._ring.last is not None and self._ring.last > cursor

    def serves(self, cursor: int) -> bool:
        """Whether a reader at `cursor` can read on from the ring."""
        return self._ring.last is not None and cursor >= self._ring.floor

    def take(self, cursor: int, encode: Encode) -> tuple[int, Any]:
        """Return (new cursor, payload) of what the ring has after `cursor`; the cursor stays if nothing."""
        key = (cursor, encode)
        found = self._memo.get(key)
        if found is None:
            entries = self._ring.take(cursor, CHUNK_BYTES)
            found = (entries[-1][0], encode(entries)) if entries else (cursor, b"")
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            self._memo[key] = found
        return found

    async def wait(self, poked: asyncio.Future[None]) -> None:
        """Wait until the ring may have grown, or until `poked` is resolved."""
        self._waiting.add(poked)
        try:
            await poked
        finally:
            self._waiting.discard(poked)

    def wake(self) -> None:
        """Wake every waiting reader."""
        self._wake_later = None
        self._woken_at = self._loop.time()
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def catch_up(self) -> None:
        """Fetch what is missing, now; while that is under way, once more afterwards."""
        self._again = True
        if self._catching_up is None:
            self._catching_up = self._loop.create_task(self._catch_up(), name=f"catch up {self.run_id}")

    def close(self) -> None:
        """Stop: it has no readers any more."""
        if self._catching_up is not None:
            self._catching_up.cancel()
        if self._wake_later is not None:
            self._wake_later.cancel()
        self.wake()

    async def _catch_up(self) -> None:
        try:
            while self._again:
                self._again = False
                if self._ring.last is None:
                    self._ring.start(await self._backfill.top(self.run_id))
                    self._grown()
                await self._fetch()
        except StorageError as error:
            _log.debug("catching up waits", run_id=self.run_id, error=str(error))
        except Exception:  # noqa: BLE001 - logged; the next comparison of the hub tries again
            _log.exception("catching up broke", run_id=self.run_id)
        finally:
            self._catching_up = None

    async def _fetch(self) -> None:
        """Read on from `last` until there is nothing more."""
        while (last := self._ring.last) is not None:
            self._ring.fill(await self._backfill.fetch(self.run_id, last))
            if self._ring.last == last:
                return
            self._grown()

    def _grown(self) -> None:
        """Let readers know: at once, but many of them at most every `linger_s`."""
        now = self._grown_at = self._loop.time()
        self._memo.clear()
        if self._wake_later is not None:
            return
        wait = self._woken_at + self._linger_s - now
        if self._linger_s and wait > 0 and self.readers >= _CROWD:
            self._wake_later = self._loop.call_later(wait, self.wake)
        else:
            self.wake()
