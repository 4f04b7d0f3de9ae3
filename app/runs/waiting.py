"""Runs that wait: for a worker, with the reason in their logs; for a person, and their way back.

A worker that lacks disk, memory or file handles claims nothing and lives on: its lease, its port and the
queue look as on a quiet day. One worker among them tells it. That no worker is alive only the API can
say. Each run that would be taken next is told once.

A run that waits for an approval or an answer continues, or ends, when its time to wait is over. One worker
looks; the database lets that happen once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from app.core.agent_records import Decision
from app.core.errors import NotFound, StorageError
from app.core.events import EventType
from app.core.models import RunStatus
from app.core.telemetry import APPROVALS, get_logger
from app.db.run_change import Changed
from app.db.run_store import RunStore
from app.redis.publisher import Publisher
from app.redis.queue import Depth, Queue

LOOK_EVERY_S = 2.0
NO_WORKER_AFTER_S = 3.0
"""A worker that is started again, or a Redis that was away, is nothing to tell of."""
_NEXT_RUNS = 100
OVERDUE_EVERY_S = 1.0
_AT_ONCE = 100

_log = get_logger(__name__)


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


async def pass_on(queue: Queue, publisher: Publisher, changed: Changed, now: int) -> None:
    """Push a run that was woken to the queue's front, and tell its watchers."""
    if not changed.events:
        return
    try:
        if changed.run.status is RunStatus.QUEUED:
            await queue.push_run(changed.run, now, front=True)
        await publisher.announce(changed.events)
    except StorageError as error:
        run_id = changed.run.run_id
        _log.warning("not pushed or told, the reconciler will", run_id=run_id, error=str(error))
