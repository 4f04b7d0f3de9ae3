"""Rows against Redis: a run that the database knows and Redis has forgotten is pushed again.

It happens when the push failed after the row was committed, or when Redis came back empty.
Counts are compared first; the scan follows a difference, and once a minute in any case. A
push too many is harmless: the claimer drops what the row does not want.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog

from app.db.run_store import RunStore
from app.models import Job, Run, RunStatus
from app.redis.queue import Queue
from app.telemetry import RECONCILED_AT

SETTLE_US = 2_000_000
"""A row younger than this may be between its commit and its push, in microseconds."""

_SCAN_EVERY_S = 60.0
_PAGE = 500

log = structlog.get_logger()


class Reconciler:
    """Compares and mends; run it under one leader."""

    def __init__(self, runs: RunStore, queue: Queue, clock: Callable[[], int]) -> None:
        self._runs, self._queue, self._clock = runs, queue, clock
        self._scanned_at = float("-inf")

    async def reconcile(self) -> int:
        """Push what Redis has forgotten; return how many entries."""
        pushed = await self._reconcile()
        RECONCILED_AT.set(self._clock() / 1_000_000)
        return pushed

    async def _reconcile(self) -> int:
        if not await self._differs() and time.monotonic() - self._scanned_at < _SCAN_EVERY_S:
            return 0
        self._scanned_at = time.monotonic()
        now = self._clock()
        queued = [run async for run in _pages(lambda after: self._queued(now, after))]
        running = [run async for run in _pages(self._running)]
        known = await self._queue.known_runs()
        forgotten = [run for run in queued if run.run_id not in known and self._settled(run, now)]
        forgotten += [run for run in running if run.run_id not in known and await self._ownerless(run)]
        await self._push(forgotten, now)
        if forgotten:
            log.warning("runs that redis had forgotten, pushed again", count=len(forgotten))
        return len(forgotten)

    async def _differs(self) -> bool:
        counts = await self._runs.counts()
        depth = await self._queue.depth()
        rows = counts.get(RunStatus.QUEUED, 0) + counts.get(RunStatus.RUNNING, 0)
        return rows > depth.pending + depth.delayed + depth.in_flight

    async def _queued(self, now: int, after: str) -> list[Run]:
        return await self._runs.queued(now, due_only=False, limit=_PAGE, after_id=after)

    async def _running(self, after: str) -> list[Run]:
        return await self._runs.running(limit=_PAGE, after_id=after)

    def _settled(self, run: Run, now: int) -> bool:
        return (run.queued_at or run.created_at) < now - SETTLE_US

    async def _ownerless(self, run: Run) -> bool:
        return run.worker_id is None or not await self._queue.worker_alive(run.worker_id)

    async def _push(self, forgotten: Sequence[Run], now: int) -> None:
        delayed = [run for run in forgotten if _is_delayed(run, now)]
        for run in delayed:
            await self._queue.push_run(run, now)
        pending = [run for run in forgotten if not _is_delayed(run, now)]
        await self._queue.push_many([(Job.of(run, now), run.attempt) for run in pending])


def _is_delayed(run: Run, now: int) -> bool:
    return run.status is RunStatus.QUEUED and run.next_attempt_at is not None and run.next_attempt_at > now


async def _pages(page: Callable[[str], Awaitable[list[Run]]]) -> AsyncIterator[Run]:
    after = ""
    while found := await page(after):
        for run in found:
            yield run
        after = found[-1].run_id
