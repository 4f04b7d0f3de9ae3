"""Looking into the queue, and seeing to its dead letters."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from app.errors import NotFound
from app.routes.deps import RUN_ID, Admin, CurrentServices, CurrentUser, OwnRun, Principal, Services, find_run
from app.routes.schemas import DeadList, QueueView, RunDetail
from app.routes.submit import retry_run
from app.routes.views import answer, links, run_detail

router = APIRouter(prefix="/v1", tags=["queue"])

_SCAN = 500


@router.get("/queue", response_model=QueueView)
async def show(_admin: Admin, services: CurrentServices) -> Response:
    """Show how much waits where, and which workers are alive."""
    depth = await services.queue.depth()
    oldest = await services.runs.oldest_queued_at()
    workers = [
        {"worker_id": name, "lease_left_s": round(left, 3), "in_flight": depth.processing.get(name, 0)}
        for name, left in sorted(depth.workers.items())
    ]
    return answer(
        {
            "depth": depth.pending,
            "in_flight": depth.in_flight,
            "delayed": depth.delayed,
            "dead": depth.dead,
            "oldest_age_s": None if oldest is None else max(0, depth.now_us - oldest) / 1_000_000,
            "workers": workers,
        }
    )


@router.get("/dead", response_model=DeadList)
async def dead(
    user: CurrentUser,
    services: CurrentServices,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None, Query(pattern=r"^\d{1,6}$", description="`next` of the page before.")
    ] = None,
) -> Response:
    """List dead letters, newest first: your own, or all of them for an admin."""
    items: list[dict[str, Any]] = []
    offset = int(cursor or 0)
    while letters := await services.queue.dead_list(offset, _SCAN):
        for letter in letters:
            if len(items) == limit:
                return answer({"items": items, "next": str(offset)})
            offset += 1
            if user.admin or await _is_own(services, user, letter):
                items.append(letter)
    return answer({"items": items, "next": None})


@router.post("/dead/{run_id}/retry", status_code=201, response_model=RunDetail)
async def retry(run: OwnRun, services: CurrentServices) -> Response:
    """Make a new run like the dead one, and drop its letter."""
    if not await _is_dead(services, run.run_id):
        raise NotFound(f"Run {run.run_id} is no dead letter; POST {links(run.run_id)['self']}/retry instead.")
    made = await retry_run(services, run)
    await services.queue.dead_remove(run.run_id)
    return answer(run_detail(made), 201, {"Location": links(made.run_id)["self"]})


@router.delete("/dead/{run_id}", status_code=204)
async def drop(
    run_id: Annotated[str, Path(description="The run id that stands in the letter.")],
    user: CurrentUser,
    services: CurrentServices,
) -> Response:
    """Drop the dead letters of a run. An admin may drop those of runs that never existed, too."""
    if not user.admin:
        await find_run(services, user, run_id)
    if not await services.queue.dead_remove(run_id):
        raise NotFound(f"There is no dead letter of a run {run_id[:64]!r}.")
    return Response(status_code=204)


async def _is_own(services: Services, user: Principal, letter: dict[str, Any]) -> bool:
    """Whether a letter is the user's, by the run's row: what an entry says can be made up."""
    run_id, entry = letter.get("run_id"), letter.get("entry")
    if isinstance(entry, dict) and entry.get("user_id", user.user_id) not in {user.user_id, ""}:
        return False
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
        return False
    run = await services.runs.get(run_id)
    return run is not None and run.user_id == user.user_id


async def _is_dead(services: Services, run_id: str) -> bool:
    offset = 0
    while letters := await services.queue.dead_list(offset, _SCAN):
        if any(letter.get("run_id") == run_id for letter in letters):
            return True
        offset += len(letters)
    return False
