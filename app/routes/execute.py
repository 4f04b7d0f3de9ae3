"""`POST /agent/execute`: create, start, cancel and status in one route, told apart by `action`."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.core.errors import Unprocessable
from app.plan.run_fields import RUN_EXAMPLE
from app.routes.auth import CurrentServices, CurrentUser, find_run
from app.routes.body import IdempotencyKey, JsonObject, check, documents
from app.routes.schemas import ExecuteCreate, ExecuteOn, RunDetail
from app.routes.views import answer, run_detail
from app.runs.cancel import request_cancel
from app.runs.submit import start_run, submit

router = APIRouter(tags=["agent"])

ACTIONS = ("create", "start", "cancel", "status")
_EXAMPLES = {
    "create": {"action": "create", "prompt": "Test Phase 2B"},
    "start": {"action": "start", "run_id": RUN_EXAMPLE},
    "cancel": {"action": "cancel", "run_id": RUN_EXAMPLE},
    "status": {"action": "status", "run_id": RUN_EXAMPLE},
}


@router.post(
    "/agent/execute",
    response_model=RunDetail,
    responses={201: {"model": RunDetail, "description": "Created; it waits for `start`."}},
    openapi_extra=documents(ExecuteCreate, ExecuteOn, examples=_EXAMPLES),
)
async def execute(
    body: JsonObject,
    user: CurrentUser,
    services: CurrentServices,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a run (it is held), start it, cancel it, or show it."""
    action = body.get("action")
    if action not in ACTIONS:
        got = "is missing" if action is None else f"is unknown: {str(action)[:64]!r}"
        raise Unprocessable(f"action {got}; it is one of {', '.join(ACTIONS)}.", code="unknown_action")
    if action == "create":
        fields = check(ExecuteCreate, body)
        made = await submit(services, user, fields, start=False, idempotency_key=idempotency_key)
        return answer(run_detail(made.run), 201 if made.fresh else 200)
    run = await find_run(services, user, check(ExecuteOn, body).run_id)
    if action == "start":
        run = await start_run(services, run)
    elif action == "cancel":
        run = await request_cancel(services, run.run_id)
    return answer(run_detail(run))
