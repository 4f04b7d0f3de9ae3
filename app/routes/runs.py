"""The canonical routes of a run: make, list, show, start, cancel, retry, steps."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.core.clock import now_us
from app.core.errors import Forbidden
from app.core.models import RunStatus
from app.routes.auth import CurrentServices, CurrentUser, OwnRun
from app.routes.body import CursorParameter, IdempotencyKey, PageLimit, documents, json_body, made_before
from app.routes.logs import last_events
from app.routes.schemas import NewRun, RunDetail, RunList, StepList, StreamTokenMade
from app.routes.tokens import once
from app.routes.views import answer, links, moment, run_detail, run_view, step_view
from app.runs.cancel import request_cancel
from app.runs.submit import checked_key, retry_run, start_run, submit

router = APIRouter(prefix="/v1/runs", tags=["runs"])

_EXAMPLES = {
    "prompt": {"prompt": "Count the words of the README", "planner": "smoke"},
    "steps": {
        "steps": [
            {"tool": "file_write", "args": {"path": "hello.txt", "content": "Hello\n"}},
            {"tool": "shell", "args": {"command": "cat hello.txt"}},
        ],
        "labels": {"team": "docs"},
    },
    "argv": {"argv": ["python", "-c", "print('hello')"], "timeout_s": 60},
}


@router.post(
    "",
    status_code=201,
    response_model=RunDetail,
    responses=made_before(RunDetail),
    openapi_extra=documents(NewRun, examples=_EXAMPLES),
)
async def create(
    body: Annotated[NewRun, json_body(NewRun)],
    user: CurrentUser,
    services: CurrentServices,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make a run and queue it, or hold it with `"start": false`."""
    made = await submit(services, user, body, start=body.start, idempotency_key=idempotency_key)
    where = {"Location": links(made.run.run_id)["self"]}
    return answer(run_detail(made.run), 201 if made.fresh else 200, where)


@router.get("", response_model=RunList)
async def list_runs(
    user: CurrentUser,
    services: CurrentServices,
    *,
    status: Annotated[RunStatus | None, Query(description="Only runs in this state.")] = None,
    limit: PageLimit = 50,
    cursor: CursorParameter = None,
    all_users: Annotated[bool, Query(alias="all", description="All users' runs; admin only.")] = False,
) -> Response:
    """List your runs, newest first."""
    if all_users and not user.admin:
        raise Forbidden("all=1 needs a token of scope admin.")
    owner = None if all_users else user.user_id
    runs, following = await services.runs.page(user_id=owner, status=status, limit=limit, cursor=cursor)
    return answer({"items": [run_view(run) for run in runs], "next": following})


@router.get("/{run_id}", response_model=RunDetail)
async def show(
    run: OwnRun,
    services: CurrentServices,
    logs: Annotated[int | None, Query(ge=0, le=1000, description="Also the last N events.")] = None,
) -> Response:
    """Show a run."""
    body = run_detail(run)
    if logs is not None:
        body["logs"] = [event.as_dict() for event in await last_events(services.logs, run.run_id, logs)]
    return answer(body)


@router.get("/{run_id}/steps", response_model=StepList)
async def steps(run: OwnRun, services: CurrentServices) -> Response:
    """List the steps that were begun, with what became of them."""
    found = await services.runs.steps(run.run_id)
    return answer({"items": [step_view(step) for step in found], "next": None})


@router.post("/{run_id}/start", response_model=RunDetail)
async def start(run: OwnRun, services: CurrentServices) -> Response:
    """Start a held run. Repeating it changes nothing; a finished run is a 409."""
    return answer(run_detail(await start_run(services, run)))


@router.post("/{run_id}/cancel", response_model=RunDetail)
async def cancel(run: OwnRun, services: CurrentServices) -> Response:
    """Cancel a run in any state; a finished one is left as it is."""
    return answer(run_detail(await request_cancel(services, run.run_id)))


@router.post("/{run_id}/retry", status_code=201, response_model=RunDetail, responses=made_before(RunDetail))
async def retry(run: OwnRun, services: CurrentServices, idempotency_key: IdempotencyKey = None) -> Response:
    """Make a new run like one that ended; it begins with the files that the old one left."""
    made = await retry_run(services, run, idempotency_key)
    where = {"Location": links(made.run.run_id)["self"]}
    return answer(run_detail(made.run), 201 if made.fresh else 200, where)


@router.post(
    "/{run_id}/stream-token",
    status_code=201,
    response_model=StreamTokenMade,
    responses=made_before(StreamTokenMade),
)
async def stream_token(
    run: OwnRun, user: CurrentUser, services: CurrentServices, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make a token for EventSource, which cannot send headers: it reads this stream, for a while."""
    now = now_us()
    secret, token = await services.tokens.create(
        run.user_id,
        "stream",
        "stream",
        now,
        run_id=run.run_id,
        made_by=user.token_id,
        expires_at=now + services.settings.stream.token_ttl_s * 1_000_000,
        key=once(user, checked_key(idempotency_key)),
    )
    url = f"{links(run.run_id)['stream']}?access_token={secret}" if secret else None
    body = {"token": secret or None, "expires_at": moment(token.expires_at), "url": url}
    return answer(body, 201 if secret else 200)
