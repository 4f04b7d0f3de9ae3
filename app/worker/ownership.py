"""Am I still the owner? Three questions that a worker keeps asking about its runs.

While Redis renews the lease, the list there is compared with what is really in flight: an
entry of ours that is missing is asked in the database, one that we do not know (the reply
to a claim was lost) is given back. While Redis is away, the database is asked every second;
if neither answers for the length of a lease, another worker may own the runs by now, so
they are stopped.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from app.core.errors import StorageError
from app.core.models import Run, RunStatus
from app.db.run_store import Owner, RunStore
from app.redis.clients import BLOCK_S
from app.worker.attempts import Attempt, InFlight
from app.worker.job_queue import JobQueue
from tailrun.process.stop import StopReason

UNKNOWN_AFTER_S = BLOCK_S + 2 + 1
"""An unknown entry is a stranger after the longest block, its socket timeout and a margin, in seconds."""

CHECK_EVERY_S = 1.0
ADOPT_EVERY_S = 5.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Watch:
    """The dependencies of ownership: seconds of a lease, its age, how to tell the guards we live.

    `adopt` starts work on a run that is ours by its row and unknown here.
    """

    lease_s: float
    lease_age_s: Callable[[], float]
    heartbeat: Callable[[], None]
    adopt: Callable[[Run], Awaitable[None]]


class Ownership:
    """Asks the three questions for one worker; runs in the event loop."""

    def __init__(
        self, in_flight: InFlight, queue: JobQueue, runs: RunStore, worker_id: str, watch: Watch
    ) -> None:
        self._in_flight, self._queue, self._runs = in_flight, queue, runs
        self._me, self._watch = worker_id, watch
        self._orphans: set[str] = set()
        self._unknown_entries: dict[bytes, float] = {}
        self._missing: set[str] = set()
        self._confirmed_at = time.monotonic()

    def held(self, entries: list[bytes]) -> None:
        """Take note of what our list in Redis holds (after each renewal)."""
        self._confirmed_at = time.monotonic()
        ours = self._in_flight.entries
        seen = self._unknown_entries
        self._unknown_entries = {e: seen.get(e, self._confirmed_at) for e in entries if e not in ours}
        held = set(entries)
        self._missing = {a.run.run_id for a in self._in_flight.values() if a.entry not in held}

    async def check(self) -> None:
        """Ask what there is to ask; call it once a second."""
        redis_away = self._watch.lease_age_s() > self._watch.lease_s / 3
        if len(self._in_flight) and (redis_away or self._missing):
            await self._ask_database(redis_away=redis_away)
        await self._requeue_unknown_entries()

    async def reread(self) -> None:
        """Ask for cancel requests whose signal was lost, and for runs that are not ours any more."""
        if len(self._in_flight):
            await self._owners()

    async def _ask_database(self, *, redis_away: bool) -> None:
        try:
            owners = await self._owners()
        except StorageError as error:
            if redis_away and time.monotonic() - self._confirmed_at > self._watch.lease_s:
                log.critical("neither redis nor database: stopping all runs", error=str(error))
                self._in_flight.stop_all(StopReason.LOST)
            return
        if redis_away:
            self._confirmed_at = time.monotonic()
            self._watch.heartbeat()
            return
        missing, self._missing = self._missing, set()
        for attempt in tuple(self._in_flight.values()):
            if attempt.run.run_id in missing and self._mine(attempt, owners):
                log.warning("entry was gone from redis, run is still ours", run_id=attempt.run.run_id)
                await self._queue.reregister(attempt.entry)

    async def _owners(self) -> Mapping[str, Owner]:
        attempts = list(self._in_flight.values())
        owners = await self._runs.owners([attempt.run.run_id for attempt in attempts])
        for attempt in attempts:
            owner = owners.get(attempt.run.run_id)
            if owner is None or owner.attempt != attempt.run.attempt:
                attempt.stop.stop(StopReason.LOST)
            elif owner.status is RunStatus.RUNNING and owner.cancel_requested_at is not None:
                attempt.stop.stop(StopReason.CANCEL)
        return owners

    def _mine(self, attempt: Attempt, owners: Mapping[str, Owner]) -> bool:
        owner = owners.get(attempt.run.run_id)
        return (
            owner is not None
            and owner.status is RunStatus.RUNNING
            and (owner.attempt, owner.worker_id) == (attempt.run.attempt, self._me)
        )

    async def adopt_orphans(self) -> None:
        """Take up runs that are ours by their row, in two looks in a row, but not in flight."""
        mine = await self._runs.running_on(self._me)
        orphans = [run for run in mine if run.run_id not in self._in_flight]
        twice = [run for run in orphans if run.run_id in self._orphans]
        self._orphans = {run.run_id for run in orphans}
        for run in twice:
            log.warning("run was ours without our knowing", run_id=run.run_id)
            await self._watch.adopt(run)

    async def _requeue_unknown_entries(self) -> None:
        now = time.monotonic()
        old = [entry for entry, since in self._unknown_entries.items() if now - since > UNKNOWN_AFTER_S]
        if old:
            log.warning("unknown entries in our list, given back", count=len(old))
            await self._queue.requeue(old)
