"""How an attempt's end becomes the run's next state. Pure, but for the dice that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from app.db.run_store import Outcome
from app.errors import ErrorCode, RunFailure
from app.models import Run, RunStatus

_STATUS = {ErrorCode.CANCELLED: RunStatus.CANCELLED, ErrorCode.TIMEOUT: RunStatus.TIMED_OUT}


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter, in seconds: random between 0 and base · 2ⁿ, at most `cap_s`.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base_s: float
    cap_s: float
    dice: Random

    def delay_us(self, retries: int) -> int:
        """Return the wait before the retry that follows `retries` earlier ones."""
        ceiling = min(self.cap_s, self.base_s * 2 ** min(retries, 32))
        return int(self.dice.uniform(0, ceiling) * 1_000_000)


def succeeded(exit_code: int | None) -> Outcome:
    """All steps done."""
    return Outcome(RunStatus.SUCCEEDED, exit_code=exit_code)


def given_back() -> Outcome:
    """The worker is going away; the run goes on elsewhere, and nothing is counted."""
    return Outcome(RunStatus.QUEUED)


def failed(run: Run, failure: RunFailure, now: int, backoff: Backoff) -> Outcome:
    """Try again later where the failure allows it and tries are left; else end the run."""
    error = failure.as_dict()
    if failure.retried_by(run.retry_on) and run.retries + 1 < run.max_attempts:
        due = now + backoff.delay_us(run.retries)
        return Outcome(RunStatus.QUEUED, failure.exit_code, error, next_attempt_at=due, counts_retry=True)
    status = _STATUS.get(failure.code, RunStatus.FAILED)
    return Outcome(status, failure.exit_code, error)


def dead_reason(run: Run, failure: RunFailure, outcome: Outcome) -> str | None:
    """Why the run's entry belongs into the dead letters; None if it does not."""
    if outcome.status not in {RunStatus.FAILED, RunStatus.TIMED_OUT}:
        return None
    if failure.code is ErrorCode.WORKER_LOST and not failure.retried:
        return "poison"
    return "retries_exhausted" if failure.retried_by(run.retry_on) else None


def with_usage(used: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    """Return an attempt's CPU and wall time with a step's added; of memory the largest counts."""
    return {
        "cpu_s": round(used.get("cpu_s", 0) + step.get("cpu_s", 0), 3),
        "wall_s": round(used.get("wall_s", 0) + step.get("wall_s", 0), 3),
        "max_rss_bytes": max(used.get("max_rss_bytes", 0), step.get("max_rss_bytes", 0)),
    }
