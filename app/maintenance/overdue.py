"""Runs that wait for a person, until that takes too long.

A run that waits for an approval or an answer continues, or ends, when its time to wait is over. One worker
looks; the database lets that happen once.
"""

from __future__ import annotations

from collections.abc import Callable

from app.core.agent_records import Decision
from app.core.events import EventType
from app.core.telemetry import APPROVALS
from app.db.run_store import RunStore
from app.redis.publisher import Publisher
from app.redis.queue import Queue
from app.runs.answers import pass_on

OVERDUE_EVERY_S = 1.0
_AT_ONCE = 100


class OverdueWaits:
    """Ends the waits whose time is over; one process at a time."""

    def __init__(self, queue: Queue, runs: RunStore, publisher: Publisher, clock: Callable[[], int]) -> None:
        self._queue, self._runs, self._publisher, self._clock = queue, runs, publisher, clock

    async def look(self) -> int:
        """Send on what has waited for too long; return how many runs."""
        ended = 0
        while found := await self._runs.overdue(self._clock(), _AT_ONCE):
            for run_id in found:
                now = self._clock()
                changed = await self._runs.stop_waiting(run_id, now)
                expired = [event for event in changed.events if event.type is EventType.APPROVAL]
                APPROVALS.labels(Decision.EXPIRED.value).inc(len(expired))
                await pass_on(self._queue, self._publisher, changed, now)
                ended += 1
        return ended
