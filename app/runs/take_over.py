"""What becomes of an entry, decided by the run's row alone. Pure.

An entry is a hint: it may be early, late, doubled, forged or left over from a crash. The
row says whether the run may be taken, by whom it is held, and since when.
"""

from __future__ import annotations

from enum import Enum, auto

from app.core.models import Run, RunStatus


def alone_from(max_redeliveries: int) -> int:
    """Return from how many redeliveries on a run has no other beside it: the last two run alone.

    All that were in flight when a worker died are suspected alike. Alone, an innocent run has nobody
    beside it who could kill its worker, and a guilty one takes nobody with it.
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
    """Nothing to do: it has ended, or a live worker has it."""
    DELAY = auto()
    """Not due yet."""
    UNKNOWN = auto()
    """No such run: a dead letter."""
    CANCEL = auto()
    """Somebody asked to cancel it while nobody had it: take it over and end it."""
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
    if run.status.terminal or in_flight or (running and run.worker_id != me and owner_alive):
        verdict = Verdict.DROP
    elif run.cancel_requested_at is not None:
        verdict = Verdict.CANCEL
    elif running and run.redeliveries >= max_redeliveries:
        verdict = Verdict.POISON
    elif not running and run.next_attempt_at is not None and run.next_attempt_at > now:
        verdict = Verdict.DELAY
    return verdict
