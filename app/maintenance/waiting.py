"""Runs that wait: for a worker, with the reason in their logs; for a person, until that takes too long.

Where workers are alive and none takes runs, the logs of those that are next say why.

A worker that lacks disk, memory or file handles claims nothing and lives on: its lease, its port and the
queue look as on a quiet day. One worker among them looks; each run that would be taken next is
told once.

A run that waits for an approval or an answer continues, or ends, when its time to wait is over. One worker
looks; the database lets that happen once.
"""

from __future__ import annotations

from collections.abc import Callable

from app.core.agent_records import Decision
from app.core.errors import NotFound
from app.core.events import EventType
from app.core.telemetry import APPROVALS
from app.db.run_store import RunStore
from app.redis.publisher import Publisher
from app.redis.queue import Queue
from app.runs.answers import pass_on

LOOK_EVERY_S = 2.0
OVERDUE_EVERY_S = 1.0
_AT_ONCE = 100
_NEXT_RUNS = 100


class WaitingLines:
    """Looks at the queue; one process at a time."""

    def __init__(self, queue: Queue, runs: RunStore, publisher: Publisher, clock: Callable[[], int]) -> None:
        self._queue, self._runs, self._publisher, self._clock = queue, runs, publisher, clock
        self._told: set[str] = set()

    async def look(self) -> None:
        """Tell the next runs, if no worker can take them."""
        why = (await self._queue.depth()).idle()
        if not why:
            self._told.clear()
            return
        for run_id in await self._queue.next_runs(_NEXT_RUNS):
            if run_id not in self._told:
                self._told.add(run_id)
                await self._tell(run_id, f"waiting: no worker takes runs: {why}")

    async def _tell(self, run_id: str, text: str) -> None:
        try:
            changed = await self._runs.note_waiting(run_id, text, self._clock())
        except NotFound:  # an entry by hand
            return
        if changed.events:
            await self._publisher.announce(changed.events)


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
