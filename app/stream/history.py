"""A run's stream so far: in the tail, in the database, or, when it is too old, in an archive.

The tail is trimmed only behind what the database has committed. So whoever reads the tail first and the
database afterwards finds every event in one of the two; the other way round an event that was committed
and trimmed in between would be in neither. `Backfill` reads in this order.

What is committed is read by `LogHistory`: from the database, which knows whether there is an archive, by
the marker in the place of the deleted lines. Where the archive is gone, the marker is what is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import orjson

from app.core.clock import parse_ts
from app.core.errors import NotFound, StorageError
from app.core.events import Entry, Event, EventType
from app.core.log_filter import EVERYTHING, LogFilter
from app.core.models import RunStatus
from app.db.log_store import LogStore, is_archived
from app.db.run_store import RunStore
from app.redis.publisher import Tail
from app.storage.log_archive import LogArchive
from app.storage.workspace import Workspaces
from app.stream.ring import contiguous

History = Callable[[str, int, int], Awaitable[list[Event]]]
"""(run_id, after, limit) → committed events above `after`, ascending."""
Heads = Callable[[Sequence[str]], Awaitable[dict[str, tuple[int, RunStatus]]]]
"""run_ids → highest committed seq and status of each."""

T = TypeVar("T")

PAGE_LINES = 500
_PAGE_BYTES = 1_000_000
_TAIL_TIMEOUT_S = 2.0
_TAIL_PAUSE_S = 1.0
_LOST_AFTER_S = 3.0
_READERS = 4
_KEPT_BYTES = 8_000_000
_PAGE_KEPT_S = 10.0
_INDEXES_KEPT = 32


class Backfill:
    """Reads history for feeds and readers.

    A hole that both the tail and the database show for 3 s is a loss, and becomes a `gap`.
    """

    def __init__(self, tail: Tail, history: History, heads: Heads) -> None:
        self._tail = tail
        self._history = history
        self._heads = heads
        self._readers = asyncio.Semaphore(_READERS)
        self._tail_rests_until = 0.0
        self._kept = _Kept()
        self._holes: dict[tuple[str, int], float] = {}

    async def top(self, run_id: str) -> int:
        """Return the highest seq that exists now; `StorageError` when neither store answers."""
        tail, heads = await asyncio.gather(
            self._ask_tail(lambda: self._tail.top(run_id)), self._heads([run_id]), return_exceptions=True
        )
        if isinstance(heads, BaseException):
            if isinstance(tail, int) and tail and isinstance(heads, StorageError):
                return tail
            raise heads
        found = heads.get(run_id)
        return max(found[0] if found else 0, tail if isinstance(tail, int) else 0)

    async def page(self, run_id: str, after: int, limit: int) -> list[Entry]:
        """Do `fetch` for a reader: few at a time, and once for all who come back at once.

        What follows `after` stays the same, so a page is kept for a while; not longer, since logs expire.
        """
        key = (run_id, after, limit)
        async with self._readers:
            found = self._kept.get(key)
            if found is None:
                found = await self.fetch(run_id, after, limit)
                self._kept.put(key, found)
            return found

    async def fetch(self, run_id: str, after: int, limit: int = PAGE_LINES) -> list[Entry]:
        """Return what follows `after` without a hole; [] when nothing does (yet).

        `StorageError` when the tail does not have it and the database cannot be asked.
        """
        first = await self._ask_tail(lambda: self._tail.read(run_id, after, 1))
        if first and contiguous(first, after):
            return contiguous(await self._more(run_id, first, limit), after)
        page = [(event.seq, event.encode()) for event in await self._history(run_id, after, limit)]
        found = contiguous(page, after)
        if found:
            self._holes.pop((run_id, after), None)
            return found
        beyond = (page or first or [None])[0]
        if beyond is None or first is None:
            return []
        return self._lost(run_id, after, beyond)

    async def _more(self, run_id: str, first: list[Entry], limit: int) -> list[Entry]:
        """Return `first` and what the tail has after it, at least `limit` if there are so many."""
        missing, last, size = limit - len(first), first[-1][0], len(first)
        if missing <= 0:
            return first
        more = await self._ask_tail(lambda: self._tail.read(run_id, last, missing, per_call=size))
        return first + (more or [])

    async def tops(self, run_ids: Sequence[str]) -> dict[str, int]:
        """Return the tails' highest seqs; {} while Redis is away."""
        return await self._ask_tail(lambda: self._tail.tops(run_ids)) or {}

    async def heads(self, run_ids: Sequence[str]) -> dict[str, tuple[int, RunStatus]]:
        """Return the database's highest seqs and states; {} while it is away."""
        try:
            return await self._heads(run_ids)
        except StorageError:
            return {}

    async def _ask_tail(self, question: Callable[[], Awaitable[T]]) -> T | None:
        """Return the tail's answer; None while Redis is away, and then leave it alone for a second."""
        if _now() < self._tail_rests_until:
            return None
        try:
            async with asyncio.timeout(_TAIL_TIMEOUT_S):
                return await question()
        except (StorageError, TimeoutError):
            self._tail_rests_until = _now() + _TAIL_PAUSE_S
            return None

    def _lost(self, run_id: str, after: int, beyond: Entry) -> list[Entry]:
        """Return a `gap` up to `beyond` once the hole is old enough; [] before."""
        now = _now()
        if len(self._holes) > 1000:  # noqa: PLR2004 - a bound, nothing is tuned by it
            self._holes.clear()
        since = self._holes.setdefault((run_id, after), now)
        if now - since < _LOST_AFTER_S:
            return []
        body = orjson.loads(beyond[1])
        last = body.get("from", beyond[0]) - 1
        gap = Event(
            seq=last,
            type=EventType.GAP,
            ts=parse_ts(body["ts"]),
            run_id=run_id,
            attempt=body["attempt"],
            data={"from": after + 1, "to": last},
        )
        return [(last, gap.encode()), beyond]


class _Kept:
    """Pages that were read lately, bounded in bytes, the oldest first."""

    def __init__(self) -> None:
        self._pages: dict[tuple[str, int, int], tuple[float, int, list[Entry]]] = {}
        self._size = 0

    def get(self, key: tuple[str, int, int]) -> list[Entry] | None:
        """Return a page; None if it has to be read."""
        until, _, found = self._pages.get(key, (0.0, 0, []))
        return found if _now() < until else None

    def put(self, key: tuple[str, int, int], page: list[Entry]) -> None:
        """Keep a page for a while; not one that is empty or too large."""
        self._drop(key)
        size = sum(len(raw) for _, raw in page)
        if not 0 < size <= 2 * _PAGE_BYTES:
            return
        self._pages[key] = _now() + _PAGE_KEPT_S, size, page
        self._size += size
        while self._size > _KEPT_BYTES:
            self._drop(next(iter(self._pages)))

    def _drop(self, key: tuple[str, int, int]) -> None:
        self._size -= self._pages.pop(key, (0.0, 0, []))[1]


def page_limit(entries: Sequence[Entry]) -> int:
    """Return how many lines a page should have, so that one of long lines stays near 1 MB.

    One of few values, so that those who read the same lines ask for the same pages.
    """
    size = sum(len(raw) for _, raw in entries) or 1
    limit = PAGE_LINES
    while limit > 1 and limit * size > _PAGE_BYTES * len(entries):
        limit //= 2
    return limit


def _now() -> float:
    return asyncio.get_running_loop().time()


class LogHistory:
    """Reads committed events, by page."""

    def __init__(self, logs: LogStore, runs: RunStore, workspaces: Workspaces) -> None:
        self._logs, self._runs, self._workspaces = logs, runs, workspaces
        self._archives: dict[str, LogArchive] = {}

    async def page(self, run_id: str, after: int, limit: int, wanted: LogFilter = EVERYTHING) -> list[Event]:
        """Return up to `limit` events with a `seq` above `after`, in order, that pass `wanted`."""
        events = await self._logs.page(run_id, after, limit, wanted)
        if not any(map(is_archived, events)):
            return events
        archive = await self._archive(run_id)
        return events if archive is None else await archive.page(after, limit, wanted)

    async def tail_cursor(self, run_id: str, n: int) -> int:
        """Return the `after` that yields the last `n` lines of output and what follows them; 0 if fewer."""
        archive = await self._archive(run_id) if await self._logs.archived(run_id) else None
        return await self._logs.tail_cursor(run_id, n) if archive is None else await archive.tail_cursor(n)

    async def _archive(self, run_id: str) -> LogArchive | None:
        """Open the run's archive, or take the one that is open; None when it is gone."""
        found = self._archives.pop(run_id, None)
        if found is None:
            run = await self._runs.get(run_id)
            if run is None:
                return None
            try:
                found = await LogArchive.open(self._workspaces.private(run.user_id, run_id))
            except NotFound:
                return None
        self._archives[run_id] = found
        if len(self._archives) > _INDEXES_KEPT:
            del self._archives[next(iter(self._archives))]
        return found
