"""What the owner of a run hands to one commit, and what it gets back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.line_batch import Written
from app.models import Event, RunStatus, StepRecord


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: a terminal status, or QUEUED for one more attempt.

    `at` (microseconds) is the time of the batch's last event unless given.
    """

    status: RunStatus
    exit_code: int | None = None
    error: dict[str, Any] | None = None
    next_attempt_at: int | None = None
    counts_retry: bool = False
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """The log cap: rows `from_seq` to `marker.seq` go, and `marker` stands for them."""

    marker: Event
    from_seq: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction writes. `events` are in order, the first one follows the last committed."""

    events: Sequence[Written] = ()
    steps: Sequence[StepRecord] = ()
    outcome: Outcome | None = None
    cut: Cut | None = None
    planner: str | None = None
    usage: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """What the row said at the commit."""

    cancel_requested_at: int | None
