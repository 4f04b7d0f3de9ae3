"""The shapes of the queue and of its dead letters over HTTP.

Looking into the queue.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from app.core.errors import StorageError, Unavailable
from app.plan.run_fields import Body, Name
from app.routes.auth import Admin, CurrentServices
from app.routes.schemas import EventView, RunView
from app.routes.views import answer
from app.runs.waiting import lacking, no_worker


class WorkerView(BaseModel):
    """A worker as Redis knows it."""

    worker_id: str
    lease_left_s: float = Field(description="Seconds; negative once it is dead.")
    in_flight: int
    lacks: str | None = Field(None, description="Why it claims nothing though it is alive; null: it does.")


class QueueView(BaseModel):
    """How much waits where."""

    depth: int = Field(description="Entries in `jobs:pending`.")
    in_flight: int
    load: int = Field(description="`depth` and `in_flight` together: what workers are scaled by.")
    delayed: int
    dead: int
    oldest_age_s: float | None = Field(description="Age of the oldest queued run; null: none is queued.")
    ended_per_min: int = Field(description="Runs that ended in the last 60 s.")
    workers: list[WorkerView]
    idle: str | None = Field(
        None, description="Why no worker takes runs, and what to do about it; null: one does."
    )


class DeadLetter(BaseModel):
    """An entry that was given up, and why."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(description="Made from the letter's content; addresses it where it has no run.")
    run_id: str | None = None
    reason: str | None = None
    error: Any = None
    raw: str | None = None
    at: str | None = None


class DeadList(BaseModel):
    """One page of dead letters, newest first."""

    items: list[DeadLetter]
    next: str | None


class DeadDetail(DeadLetter):
    """A dead letter with its run and the last events of its log."""

    run: RunView | None
    logs: list[EventView]


class DeadRetry(Body):
    """Body of `POST /v1/dead/retry`: either `run_ids` or `all`."""

    run_ids: Annotated[list[Name], Field(min_length=1, max_length=1000)] | None = Field(
        default=None, description="Runs whose dead letters are retried."
    )
    all: bool = Field(default=False, description="All letters that you may see and that have a run.")


class Retried(BaseModel):
    """A run that was dead, and the new one."""

    run_id: str
    retried_as: str


class RetryRefusal(BaseModel):
    """A run that could not be retried, and why."""

    run_id: str
    message: str


class DeadRetried(BaseModel):
    """What became of many retries."""

    items: list[Retried]
    refused: list[RetryRefusal]
    left: int = Field(description="Letters that this request did not come to: ask again.")


class Dropped(BaseModel):
    """How many dead letters were dropped."""

    dropped: int


router = APIRouter(prefix="/v1", tags=["queue"])

_MINUTE_US = 60_000_000


@router.get("/queue", response_model=QueueView)
async def show(_admin: Admin, services: CurrentServices) -> Response:
    """Show how much waits where, and which workers are alive."""
    try:
        depth = await services.queue.depth()
    except StorageError as error:  # whoever asks is an admin, and looks for just this
        raise Unavailable(f"The queue can't be read: {error}.", retry_after_s=1) from error
    oldest = await services.runs.oldest_queued_at()
    ended = await services.runs.ended_since(depth.now_us - _MINUTE_US)
    workers = [
        {
            "worker_id": name,
            "lease_left_s": round(left, 3),
            "in_flight": depth.processing.get(name, 0),
            "lacks": depth.lacks.get(name),
        }
        for name, left in sorted(depth.workers.items())
    ]
    return answer(
        {
            "depth": depth.pending,
            "in_flight": depth.in_flight,
            "load": depth.pending + depth.in_flight,
            "delayed": depth.delayed,
            "dead": depth.dead,
            "oldest_age_s": None if oldest is None else max(0, depth.now_us - oldest) / 1_000_000,
            "ended_per_min": ended,
            "workers": workers,
            "idle": lacking(depth) or no_worker(depth, services.settings.worker.fallback_s) or None,
        }
    )
