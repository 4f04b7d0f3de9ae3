"""`POST /agent/execute`, or `/execute`: create, start, cancel and status, told apart by `action`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from app.core.errors import Unprocessable
from app.core.models import Run
from app.plan.fenced_plans import NO_MODEL, SMOKE, is_bare
from app.plan.run_fields import RUN_EXAMPLE
from app.routes.auth import CurrentServices, CurrentUser, find_run
from app.routes.body import IdempotencyKey, JsonObject, check, documents
from app.routes.schemas import ExecuteCreate, ExecuteOn, ExecuteView
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

_DOCUMENTED: dict[str, Any] = {
    "response_model": ExecuteView,
    "responses": {201: {"model": ExecuteView, "description": "Created; it waits for `start`."}},
    "openapi_extra": documents(ExecuteCreate, ExecuteOn, examples=_EXAMPLES),
}


@router.post("/agent/execute", **_DOCUMENTED)
@router.post("/execute", **_DOCUMENTED)
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
        if services.models.default is None and fields.prompt is not None and is_bare(fields.prompt):
            fields.planner = SMOKE  # this route has always taken such prompts
        made = await submit(services, user, fields, start=False, idempotency_key=idempotency_key)
        return answer(_view(made.run), 201 if made.fresh else 200)
    run = await find_run(services, user, check(ExecuteOn, body).run_id)
    if action == "start":
        run = await start_run(services, run)
    elif action == "cancel":
        run = await request_cancel(services, run.run_id)
    return answer(_view(run))


def _view(run: Run) -> dict[str, Any]:
    """Show a run; one of the smoke plan says from the start that its prompt is not carried out."""
    view = run_detail(run)
    if (run.planner or run.spec.get("planner")) == SMOKE:
        view |= {"planner": SMOKE, "warning": NO_MODEL}
    return view
