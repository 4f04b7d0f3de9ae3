"""Says in the logs of waiting runs why they wait, where workers are alive and none takes runs.

A worker that lacks disk, memory or file handles claims nothing and lives on: its lease, its port and the
queue look as on a quiet day. One worker among them looks; each run that would be taken next is
told once.
"""

from __future__ import annotations

from collections.abc import Callable

from app.core.errors import NotFound
from app.db.run_store import RunStore
from app.redis.publisher import Publisher
from app.redis.queue import Queue

LOOK_EVERY_S = 2.0
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
