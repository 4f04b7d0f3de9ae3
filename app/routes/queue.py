"""Looking into the queue."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.routes.deps import Admin, CurrentServices
from app.routes.queue_schemas import QueueView
from app.routes.views import answer

router = APIRouter(prefix="/v1", tags=["queue"])

_MINUTE_US = 60_000_000


@router.get("/queue", response_model=QueueView)
async def show(_admin: Admin, services: CurrentServices) -> Response:
    """Show how much waits where, and which workers are alive."""
    depth = await services.queue.depth()
    oldest = await services.runs.oldest_queued_at()
    ended = await services.runs.ended_since(depth.now_us - _MINUTE_US)
    workers = [
        {"worker_id": name, "lease_left_s": round(left, 3), "in_flight": depth.processing.get(name, 0)}
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
        }
    )
