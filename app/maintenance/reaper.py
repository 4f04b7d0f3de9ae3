"""Periodic work that keeps the queue alive: the tick in every worker, the reconciler under one leader.

Rows against Redis: a run that the database knows and Redis has forgotten is pushed again.

It happens when the push failed after the row was committed, or when Redis came back empty.
Counts are compared first; the scan follows a difference, and once a minute in any case. A
push too many is harmless: the claimer drops what the row does not want.

A scan reads all that waits, page by page, first in Redis and then in the database, and keeps a few bits
of each run meanwhile. What it costs, it rests for: with a million runs that wait it comes less often.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import structlog

from app.core.errors import StorageError
from app.core.models import Job, Run, RunStatus
from app.core.telemetry import RECONCILED_AT
from app.db.run_queries import OpenRun
from app.db.run_store import RunStore
from app.maintenance.seen_runs import SeenRuns
from app.redis.queue import Queue
from app.redis.ticks import Ticks

RECONCILE_EVERY_S = 5.0

log = structlog.get_logger()


class Reaper:
    """Turns the clockwork for ever."""

    def __init__(self, ticks: Ticks, reconciler: Reconciler, worker_id: str) -> None:
        self._ticks, self._reconciler, self._me = ticks, reconciler, worker_id

    async def run(self) -> None:
        """Tick and reconcile until cancelled; a server that is away only delays it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ticks.run())
            group.create_task(self._reconcile_for_ever())

    async def _reconcile_for_ever(self) -> None:
        while True:
            await asyncio.sleep(RECONCILE_EVERY_S)
            try:
                if await self._ticks.lead("reconciler", self._me, RECONCILE_EVERY_S * 3):
                    await self._reconciler.reconcile()
            except StorageError as error:
                log.warning("reconciler failed", error=str(error))


SETTLE_US = 2_000_000
"""A row younger than this may be between its commit and its push, in microseconds."""

_OPEN = (RunStatus.QUEUED, RunStatus.RUNNING)
_SCAN_EVERY_S = 60.0
_REST = 20
"""How many times as long as counting or a scan took nothing of the kind is done; unless Redis lost much."""
_PAGE = 500


class Reconciler:
    """Compares and mends; run it under one leader."""

    def __init__(self, runs: RunStore, queue: Queue, clock: Callable[[], int]) -> None:
        self._runs, self._queue, self._clock = runs, queue, clock
        self._scanned_at = self._rest_until = float("-inf")
        self._entries = 0

    async def reconcile(self) -> int:
        """Push what Redis has forgotten; return how many entries."""
        pushed = await self._reconcile()
        RECONCILED_AT.set(self._clock() / 1_000_000)
        return pushed

    async def _reconcile(self) -> int:
        began, before = time.monotonic(), self._entries
        depth = await self._queue.depth()
        self._entries = entries = depth.pending + depth.delayed + depth.in_flight
        if began < self._rest_until and entries >= before / 2:
            return 0
        try:
            if began - self._scanned_at < _SCAN_EVERY_S and await self._rows() <= entries:
                return 0
            self._scanned_at = began
            return await self._scan(entries)
        finally:
            now = time.monotonic()
            self._rest_until = now + _REST * (now - began)

    async def _rows(self) -> int:
        return sum((await self._runs.counts(_OPEN)).values())

    async def _scan(self, entries: int) -> int:
        now, seen = self._clock(), SeenRuns(entries)
        async for page in self._queue.known_runs():
            for run_id in page:
                seen.add(run_id)
        pushed, alive = 0, dict[str, bool]()
        for status in _OPEN:
            async for rows in self._pages(status):
                unknown = [row for row in rows if row.run_id not in seen]
                forgotten = [row.run_id for row in unknown if await self._is_lost(row, status, now, alive)]
                pushed += await self._push(forgotten, now)
        if pushed:
            log.warning("runs that redis had forgotten, pushed again", count=pushed)
        return pushed

    async def _pages(self, status: RunStatus) -> AsyncIterator[list[OpenRun]]:
        after = ""
        while rows := await self._runs.open_runs(status, _PAGE, after):
            yield rows
            after = rows[-1].run_id

    async def _is_lost(self, row: OpenRun, status: RunStatus, now: int, alive: dict[str, bool]) -> bool:
        if status is RunStatus.QUEUED:
            return row.since < now - SETTLE_US
        if row.worker_id is None:
            return True
        if row.worker_id not in alive:
            alive[row.worker_id] = await self._queue.worker_alive(row.worker_id)
        return not alive[row.worker_id]

    async def _push(self, run_ids: Sequence[str], now: int) -> int:
        forgotten = await self._runs.many(run_ids) if run_ids else []
        for run in (run for run in forgotten if _is_delayed(run, now)):
            await self._queue.push_run(run, now)
        pending = [run for run in forgotten if not _is_delayed(run, now) and not run.status.terminal]
        await self._queue.push_many([(Job.of(run, now), run.attempt) for run in pending])
        return len(forgotten)


def _is_delayed(run: Run, now: int) -> bool:
    return run.status is RunStatus.QUEUED and run.next_attempt_at is not None and run.next_attempt_at > now
