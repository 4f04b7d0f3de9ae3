"""`/api/v1/operations`: a run under the name of an operation, with its lines, for polling."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.core.errors import InvalidRequest, Unprocessable
from app.plan.run_fields import RunFields
from app.routes.auth import CurrentServices, CurrentUser, OwnRun
from app.routes.body import IdempotencyKey, documents, json_body, made_before, parse_object
from app.routes.logs import last_lines
from app.routes.schemas import NewOperation, OperationView
from app.routes.views import answer, run_view
from app.runs.services import Services
from app.runs.submit import submit

router = APIRouter(prefix="/api/v1/operations", tags=["operations"])

_EXAMPLES = {
    "operation": {"app_signature": "demo", "operation_request_json": '{"permission_id": 4096}'},
    "task type": {"app_signature": "seed-db", "operation_request_json": '{"reset": true}'},
}
_SHIPPED = "operation"
"""The task type of operations that name none."""


@router.post(
    "",
    status_code=201,
    response_model=OperationView,
    responses=made_before(OperationView),
    openapi_extra=documents(NewOperation, examples=_EXAMPLES),
)
async def create(
    body: Annotated[NewOperation, json_body(NewOperation)],
    user: CurrentUser,
    services: CurrentServices,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make an operation and queue it: a task of OPERATION_TYPE, else of the type that `app_signature` names.

    Where it names none, the type `operation` runs.
    """
    task = _as_task(services, body)
    made = await submit(services, user, task, start=True, idempotency_key=idempotency_key)
    view = {"operation_id": made.run.run_id, **run_view(made.run), "logs": []}
    return answer(view, 201 if made.fresh else 200)


def _as_task(services: Services, body: NewOperation) -> RunFields:
    """Say an operation as a task: what the type declares decides which parameters it gets.

    `app_signature` and `operation_request_json` are passed where they are declared; the fields of
    the request are parameters of their own where the request as a whole is not.
    """
    request = _request(body.operation_request_json)
    types = services.task_types
    configured = services.settings.tasks.operation_type
    if not configured and body.app_signature.partition("/")[0] not in types.types:
        configured = _SHIPPED
    name, _, command = (configured or body.app_signature).partition("/")
    if name not in types.types:
        raise Unprocessable(_missing(services, body.app_signature), code="unknown_type")
    declared = types.params(name, command or None)
    whole = {
        field: value
        for field, value in body.model_dump().items()
        if field in declared and (configured or field != "app_signature")
    }
    params = whole if "operation_request_json" in declared else {**request, **whole}
    return RunFields(type=name, command=command or None, params=params)


def _missing(services: Services, signature: str) -> str:
    """Say which setting names the type that is not there."""
    there = ", ".join(services.task_types.types)
    if services.settings.tasks.operation_type:
        unset = f"OPERATION_TYPE names {services.settings.tasks.operation_type[:64]!r}, which is no task type"
    else:
        unset = f"app_signature {signature[:64]!r} is no task type, and OPERATION_TYPE is unset"
    return f"{unset}. TASKS_FILE declares: {there}."


def _request(text: str) -> dict[str, Any]:
    try:
        return parse_object(text.encode("utf-8", "replace"))
    except InvalidRequest as error:
        raise Unprocessable(error.message.replace("The body", "operation_request_json", 1)) from None


@router.get("/{run_id}", response_model=OperationView)
async def show(
    run: OwnRun,
    services: CurrentServices,
    logs: Annotated[int, Query(ge=0, le=1000, description="How many of its last lines.")] = 100,
) -> Response:
    """Show a run as an operation, with its last lines as bare text."""
    lines = await last_lines(services.logs, run.run_id, logs)
    return answer({"operation_id": run.run_id, **run_view(run), "logs": lines})
