"""Removes Jobs of tools whose run has ended, under one leader: what a worker left that died in between.

A Job is deleted by the worker that commits its result. Whatever goes wrong before that (the worker
dies behind the commit, a run is cancelled while it has no owner) ends here: a Job whose run is over
is deleted. Jobs of unknown runs are left to their own time limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import structlog

from app.db.run_store import RunStore

SWEEP_EVERY_S = 5.0
_STAGED_S = 86_400.0
_SWEEPS_A_STAGING = 720

log = structlog.get_logger()


class Jobs(Protocol):
    """The executor's view of its Jobs."""

    def jobs(self) -> Mapping[str, str]:
        """Return the run's id of each Job that is there and not being deleted, by the Job's name."""
        ...

    async def remove(self, name: str) -> None:
        """Delete a Job and everything of it."""
        ...

    async def sweep(self, older_than_s: float) -> None:
        """Delete staged files that were never fetched."""
        ...


class JobSweeper:
    """One worker's part in it; run `sweep` under one leader."""

    def __init__(self, jobs: Jobs, runs: RunStore) -> None:
        self._jobs, self._runs = jobs, runs
        self._rounds = 0

    async def sweep(self) -> int:
        """Remove the Jobs of runs that are over; return how many."""
        jobs = self._jobs.jobs()
        heads = await self._runs.heads(sorted(set(jobs.values())))
        over = [name for name, run_id in jobs.items() if run_id in heads and heads[run_id][1].terminal]
        for name in over:
            log.info("job of an ended run removed", job=name, run_id=jobs[name])
            await self._jobs.remove(name)
        if self._rounds % _SWEEPS_A_STAGING == 0:
            await self._jobs.sweep(_STAGED_S)
        self._rounds += 1
        return len(over)
