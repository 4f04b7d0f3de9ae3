"""How many runs are in each state, counted no more often than is cheap.

Counting reads every run. Up to some thousands that is nothing, and each scrape counts. Beyond, it is
done beside the scrapes, which get the figure of the last time, and rests for many times as long as it took:
it costs a share of the database that does not grow with the history, while the figure's age does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection

import structlog

from app.core.errors import StorageError
from app.core.models import RunStatus

Count = Callable[[Collection[RunStatus]], Awaitable[dict[RunStatus, int]]]

EXACT_UP_TO = 10_000
"""Runs, up to which each question counts anew."""
REST = 200
"""How many times as long as the last count took there is none: one connection is busy for 0.5 %."""

log = structlog.get_logger()


class RunCounts:
    """The states in which runs wait or run, and those in which they have ended: of these there are more."""

    def __init__(self, count: Count, clock: Callable[[], float] = time.monotonic) -> None:
        groups = [[s for s in RunStatus if s.terminal is terminal] for terminal in (False, True)]
        self._parts = [_Part(count, group, clock) for group in groups]

    async def look(self) -> dict[RunStatus, int]:
        """Return the counts as they are known; `StorageError` while they can't be counted."""
        found = await asyncio.gather(*(part.look() for part in self._parts))
        return {status: part.get(status, 0) for part in found for status in part}

    async def close(self) -> None:
        """Stop counting."""
        for part in self._parts:
            await part.close()


class _Part:
    def __init__(self, count: Count, states: Collection[RunStatus], clock: Callable[[], float]) -> None:
        self._count, self._states, self._clock = count, states, clock
        self._known: dict[RunStatus, int] | None = None
        self._again_at = float("-inf")
        self._counting: asyncio.Task[dict[RunStatus, int]] | None = None

    async def look(self) -> dict[RunStatus, int]:
        known = self._known
        if known is None or sum(known.values()) <= EXACT_UP_TO:
            return await asyncio.shield(self._begun())  # the caller may give up; the count continues
        if self._clock() >= self._again_at:
            self._begun()
        return known

    def _begun(self) -> asyncio.Task[dict[RunStatus, int]]:
        if self._counting is None:
            self._counting = asyncio.create_task(self._count_all())
            self._counting.add_done_callback(self._counted)
        return self._counting

    async def _count_all(self) -> dict[RunStatus, int]:
        began = self._clock()
        found = await self._count(self._states)
        now = self._clock()
        self._again_at = now + REST * (now - began)
        self._known = {status: found.get(status, 0) for status in self._states}
        return self._known

    def _counted(self, task: asyncio.Task[dict[RunStatus, int]]) -> None:
        self._counting = None
        if not task.cancelled() and isinstance(error := task.exception(), StorageError):
            log.warning("runs could not be counted", error=str(error))

    async def close(self) -> None:
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.gather(self._counting, return_exceptions=True)
