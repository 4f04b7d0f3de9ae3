"""Rows against Redis: a run that the database knows and Redis has forgotten is pushed again.

It happens when the push failed after the row was committed, or when Redis came back empty.
Counts are compared first; the scan follows a difference, and once a minute in any case. A
push too many is harmless: the claimer drops what the row does not want.

A scan reads all that waits, page by page, first in Redis and then in the database, and keeps a few bits
of each run meanwhile. What it costs, it rests for: with a million runs that wait it comes less often.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from hashlib import blake2b

import structlog

from app.core.models import Job, Run, RunStatus
from app.core.telemetry import RECONCILED_AT
from app.db.run_queries import OpenRun
from app.db.run_store import RunStore
from app.redis.queue import Queue

RECONCILE_EVERY_S = 5.0

log = structlog.get_logger()

SETTLE_US = 2_000_000
"""A row younger than this may be between its commit and its push, in microseconds."""

_OPEN = (RunStatus.QUEUED, RunStatus.RUNNING)
_SCAN_EVERY_S = 60.0
_REST = 20
"""How many times as long as counting or a scan took nothing of the kind is done; unless Redis lost much."""
_PAGE = 500

_BITS_A_RUN = 64
_FEWEST_BITS, _MOST_BITS = 1 << 16, 1 << 27
"""8 kB, and 16 MB: enough for two million runs; with ten times as many one in twenty is mistaken."""
_HASHES, _HASH_BYTES = 4, 4


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


class SeenRuns:
    """Runs by their ids, in memory that is bounded; `expected` says how many there will be, about.

    A Bloom filter: it never forgets a run, and takes one in some ten thousand for seen that was not. Each
    one hashes with a key of its own, so that another look, with another filter, mistakes others.
    """

    def __init__(self, expected: int) -> None:
        wanted = min(max(expected * _BITS_A_RUN, _FEWEST_BITS), _MOST_BITS)
        self._mask = (1 << (wanted - 1).bit_length()) - 1
        self._bits = bytearray((self._mask + 1) // 8)
        self._key = secrets.token_bytes(16)

    def add(self, run_id: str) -> None:
        """Note a run."""
        for place in self._places(run_id):
            self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, run_id: str) -> bool:
        """Whether it was noted; seldom True though it was not, and never False though it was."""
        return all(self._bits[place >> 3] >> (place & 7) & 1 for place in self._places(run_id))

    def _places(self, run_id: str) -> Iterable[int]:
        digest = blake2b(run_id.encode(), digest_size=_HASHES * _HASH_BYTES, key=self._key).digest()
        parts = (digest[at : at + _HASH_BYTES] for at in range(0, len(digest), _HASH_BYTES))
        return (int.from_bytes(part) & self._mask for part in parts)
