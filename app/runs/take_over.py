"""The verdict on an entry, decided by the run's row alone, and the end of a run that has no worker.

A take-over has one order: (1) the row, attempt + 1; (2) the fence; (3) the tail's uncommitted lines into
the database; (4) the next `seq`. (1) is `RunStore.take_over`, (2) to (4) are `FencedTail.inherit`. A worker
does (1) when it claims and the rest when it opens the stream; `OrphanEnd` does all of it at once.

An entry is a hint: it may be early, late, doubled, forged or left over from a crash. The
row says whether the run may be taken, by whom it is held, and since when.
"""

from __future__ import annotations

import uuid
from enum import Enum, auto

from app.core.events import Event, EventType
from app.core.models import Fence, Run, RunStatus
from app.db.run_store import Batch, Outcome, RunStore
from app.redis.publisher import Publisher, Tail
from app.stream.lane import FencedTail
from tailrun.process.errors import RunFailure


def alone_from(max_redeliveries: int) -> int:
    """Return from how many redeliveries on a run has no other beside it: the last two run alone.

    All that were in flight when a worker died are suspected alike. Alone, an innocent run has no
    other beside it that could kill its worker, and a guilty one takes no other with it.
    """
    return max(1, max_redeliveries - 1)


def redelivered(run: Run) -> int:
    """Return the redeliveries that a run has once it is taken over."""
    return run.redeliveries + int(run.status is RunStatus.RUNNING)


class Verdict(Enum):
    """What to do with an entry."""

    TAKE = auto()
    """Take the run over and work on it."""
    DROP = auto()
    """Nothing to do: it has ended or waits for an answer, or a live worker has it."""
    DELAY = auto()
    """Not due yet."""
    UNKNOWN = auto()
    """No such run: a dead letter."""
    CANCEL = auto()
    """A cancel came while it had no owner: take it over and end it."""
    POISON = auto()
    """Redelivered too often: take it over, end it, keep its entry as a dead letter."""


def judge(
    run: Run | None, *, now: int, me: str, in_flight: bool, owner_alive: bool, max_redeliveries: int
) -> Verdict:
    """Judge an entry by its run's row; `now` is Redis TIME in microseconds."""
    if run is None:
        return Verdict.UNKNOWN
    running = run.status is RunStatus.RUNNING
    verdict = Verdict.TAKE
    idle = run.status.terminal or run.status is RunStatus.WAITING
    if idle or in_flight or (running and run.worker_id != me and owner_alive):
        verdict = Verdict.DROP
    elif run.cancel_requested_at is not None:
        verdict = Verdict.CANCEL
    elif running and run.redeliveries >= max_redeliveries:
        verdict = Verdict.POISON
    elif not running and run.next_attempt_at is not None and run.next_attempt_at > now:
        verdict = Verdict.DELAY
    return verdict


class OrphanEnd:
    """Ends runs whose owner's lease is dead, without a worker."""

    def __init__(self, runs: RunStore, publisher: Publisher, tail: Tail) -> None:
        self._runs, self._publisher, self._tail = runs, publisher, tail

    async def end(self, seen: Run, status: RunStatus, failure: RunFailure, now: int) -> list[Event] | None:
        """Take the run over and end it; return the events to announce. None: the row is not as `seen`.

        The owner's name has no lease, so whoever finds the run after a crash in here may take it over.

        Raises:
            LostOwnership: another process did so already.
            StorageError: Redis or the database is away; the run is left to the next one.
        """
        run = await self._runs.take_over(seen, f"end-{uuid.uuid4()}", now)
        if run is None:
            return None
        fence = Fence(run.run_id, run.attempt, str(run.worker_id))
        last = await FencedTail(fence, self._publisher, self._tail, self._runs).inherit(run.last_seq, now)
        error = failure.as_dict()
        data = {"status": status.value, "exit_code": None, "error": error}
        end = Event(last + 1, EventType.END, now, run.run_id, run.attempt, data=data)
        await self._runs.commit(fence, last, Batch(events=[end], outcome=Outcome(status, error=error)))
        return [end]
