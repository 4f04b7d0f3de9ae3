"""Those who read a run's stream: a cursor each, and nothing else.

`LiveReader` follows a run that has not ended: from history while it is below the ring, then from
the ring, then it waits. `Replay` reads what is there and ends. Both hand out payloads, one
`next()` at a time, so that a slow reader holds one payload and delays no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any, Protocol

from app.core.errors import StorageError
from app.core.events import Entry
from app.stream.feed import CHUNK_BYTES, Encode, RunFeed
from app.stream.history import PAGE_LINES, Backfill, page_limit
from app.stream.ring import is_end

_RETRY_S = 0.5
_GIVE_UP_AFTER_S = 5.0

NOTHING = b""
"""Returned by `next` when it was poked and there is nothing new."""


class Reader(Protocol):
    """The source of a route's stream: payloads of the encoding it asked for.

    `finished` tells, once `next` has returned None, whether that was all there is.
    """

    finished: bool

    async def next(self) -> Any:
        """Return the next payload, `NOTHING` after a poke, None at the end of the stream."""
        ...

    def poke(self) -> None:
        """Let a waiting `next` return."""
        ...

    def close(self) -> None:
        """End the stream: `next` returns None from now on."""
        ...

    def drain(self) -> None:
        """The process is about to stop: end, if the client can go on with another process."""
        ...


class _Pages:
    """History after a cursor, page by page, handed out in chunks.

    Pages end at multiples of their length: those who read the same lines share them, wherever
    each of them began.
    """

    def __init__(self, run_id: str, backfill: Backfill) -> None:
        self._run_id = run_id
        self._backfill = backfill
        self._page: deque[Entry] = deque()
        self._limit = PAGE_LINES

    async def take(self, after: int) -> list[Entry]:
        """Return a chunk of what follows `after`; [] when there is nothing (yet)."""
        if not self._page:
            page = await self._backfill.page(self._run_id, after, self._limit - after % self._limit)
            self._limit = page_limit(page) if page else PAGE_LINES
            self._page.extend(page)
        chunk: list[Entry] = []
        size = 0
        while self._page and (not chunk or size + len(self._page[0][1]) <= CHUNK_BYTES):
            entry = self._page.popleft()
            size += len(entry[1])
            chunk.append(entry)
        return chunk


class LiveReader:
    """Follows a run through its feed."""

    def __init__(self, feed: RunFeed, backfill: Backfill, after: int, encode: Encode) -> None:
        self.cursor = after
        self._feed = feed
        self._encode = encode
        self._pages = _Pages(feed.run_id, backfill)
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None
        self.finished = False
        self._closed = False
        self._poked = False

    async def next(self) -> Any:
        """Return the next payload, `NOTHING` after a poke, None at the end of the stream."""
        while not self._closed:
            if self._poked:
                self._poked = False
                return NOTHING
            if self.finished or self._feed.ended(self.cursor):
                self.finished = True
                return None
            before = self.cursor
            payload = self._from_ring() if self._feed.serves(before) else await self._from_history()
            if payload:
                return payload
            if self.cursor == before:
                await self._wait()
        return None

    def poke(self) -> None:
        """Let a waiting `next` return `NOTHING`."""
        self._poked = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def close(self) -> None:
        """End the stream."""
        self._closed = True
        self.poke()

    def drain(self) -> None:
        """End the stream: another process serves the rest."""
        self.close()

    def _from_ring(self) -> Any:
        self.cursor, payload = self._feed.take(self.cursor, self._encode)
        return payload

    async def _from_history(self) -> Any:
        try:
            chunk = await self._pages.take(self.cursor)
        except StorageError:
            await self._wait(_RETRY_S)
            return NOTHING
        if not chunk:
            return NOTHING
        self.cursor = chunk[-1][0]
        self.finished = is_end(chunk[-1][1])
        return self._encode(chunk)

    async def _wait(self, at_most_s: float | None = None) -> None:
        if self._poked:
            return
        self._future = self._loop.create_future()
        try:
            if at_most_s is None and self._feed.serves(self.cursor):
                if not self._feed.has_more(self.cursor):
                    await self._feed.wait(self._future)
            else:  # nothing to wait for but time: history lags behind, or cannot be read just now
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(at_most_s or _RETRY_S):
                        await self._feed.wait(self._future)
        finally:
            self._future = None


class Replay:
    """Reads up to `until` and ends: a finished run, or what is there of one that has not ended."""

    def __init__(self, run_id: str, backfill: Backfill, after: int, until: int, encode: Encode) -> None:
        self.cursor = after
        self._until = until
        self._encode = encode
        self._pages = _Pages(run_id, backfill)
        self.finished = False
        self._closed = False

    async def next(self) -> Any:
        """Return the next payload, None at the end; `StorageError` when neither store answers."""
        while not self._closed and not self.finished:
            chunk = await self._chunk() if self.cursor < self._until else []
            if chunk:
                self.cursor = chunk[-1][0]
            else:
                self.finished = not self._closed
            payload = self._encode(chunk)  # of nothing, at the end: what the encoding held back
            if payload:
                return payload
        return None

    def poke(self) -> None:
        """Nothing to do: it never waits for long."""

    def close(self) -> None:
        """End the stream."""
        self._closed = True

    def drain(self) -> None:
        """Go on: a download cannot be resumed, and it is short."""

    async def _chunk(self) -> list[Entry]:
        """Return the next chunk, [] when there is none to come; wait a little for what lags."""
        give_up_at = asyncio.get_running_loop().time() + _GIVE_UP_AFTER_S
        while not self._closed:
            try:
                chunk = await self._pages.take(self.cursor)
            except StorageError:
                if asyncio.get_running_loop().time() > give_up_at:
                    raise
            else:
                if chunk or asyncio.get_running_loop().time() > give_up_at:
                    return chunk
            await asyncio.sleep(_RETRY_S)
        return []
