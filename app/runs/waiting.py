"""Says in the logs of waiting runs why they wait: no worker is alive, or those that are take no runs.

A worker that lacks disk, memory or file handles claims nothing and lives on: its lease, its port and the
queue look as on a quiet day. One worker among them tells it. That no worker is alive only the API can
say. Each run that would be taken next is told once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from app.core.errors import NotFound
from app.db.run_store import RunStore
from app.redis.publisher import Publisher
from app.redis.queue import Depth, Queue

LOOK_EVERY_S = 2.0
NO_WORKER_AFTER_S = 3.0
"""A worker that is started again, or a Redis that was away, is nothing to tell of."""
_NEXT_RUNS = 100


def lacking(depth: Depth) -> str:
    """Say why no worker takes runs though some are alive; empty where one does, or none is alive."""
    if not depth.alive or not all(name in depth.lacks for name in depth.alive):
        return ""
    said = "; ".join(dict.fromkeys(depth.lacks[name] for name in depth.alive))
    return f"no worker takes runs: {said}"


def no_worker(depth: Depth, fallback_s: float) -> str:
    """Say that no worker is alive, and what to do; empty where one is."""
    if depth.alive:
        return ""
    if fallback_s:
        return f"no worker is alive: after {fallback_s:g} s the API starts one of its own (WORKER_FALLBACK_S)"
    return (
        "no worker is alive: start one with `tailrun worker`, in a cluster with "
        "`kubectl scale deployment agent-worker --replicas=1`"
    )


class WaitingLines:
    """Looks at the queue, and tells the next runs why no worker takes them.

    `why` judges what it finds, empty: all is well; what has not held for `after_s` is not told. Several
    processes may look: the database takes a line that a run ends with already for the same one.
    """

    def __init__(
        self,
        queue: Queue,
        runs: RunStore,
        publisher: Publisher,
        clock: Callable[[], int],
        why: Callable[[Depth], str],
        *,
        after_s: float = 0.0,
    ) -> None:
        self._queue, self._runs, self._publisher, self._clock = queue, runs, publisher, clock
        self._why, self._after_s = why, after_s
        self._since: float | None = None
        self._told: set[str] = set()

    async def look(self) -> None:
        """Tell the next runs, if no worker can take them."""
        why = self._why(await self._queue.depth())
        if not why:
            self._since = None
            self._told.clear()
            return
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since < self._after_s:
            return
        for run_id in await self._queue.next_runs(_NEXT_RUNS):
            if run_id not in self._told:
                self._told.add(run_id)
                await self._tell(run_id, f"waiting: {why}")

    async def _tell(self, run_id: str, text: str) -> None:
        try:
            changed = await self._runs.note_waiting(run_id, text, self._clock())
        except NotFound:  # an entry by hand
            return
        if changed.events:
            await self._publisher.announce(changed.events)
