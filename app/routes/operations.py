"""`/api/v1/operations`: a run under the name of an operation, with its lines, for polling."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.errors import InvalidRequest, Unprocessable
from app.routes.body import documents, json_body, parse_object
from app.routes.deps import CurrentServices, CurrentUser, OwnRun
from app.routes.logs import last_lines
from app.routes.schemas import NewOperation, OperationView, RunFields
from app.routes.submit import submit
from app.routes.views import answer, run_view

router = APIRouter(prefix="/api/v1/operations", tags=["operations"])

_EXAMPLES = {"operation": {"app_signature": "demo", "operation_request_json": '{"permission_id": 4096}'}}


@router.post(
    "",
    status_code=201,
    response_model=OperationView,
    openapi_extra=documents(NewOperation, examples=_EXAMPLES),
)
async def create(
    body: Annotated[NewOperation, json_body(NewOperation)], user: CurrentUser, services: CurrentServices
) -> Response:
    """Make an operation and queue it. No operation type is configured yet, so each is a 422."""
    try:
        params = parse_object(body.operation_request_json.encode())
    except InvalidRequest as error:
        raise Unprocessable(error.message.replace("The body", "operation_request_json", 1)) from None
    made = await submit(services, user, RunFields(type=body.app_signature, params=params), start=True)
    return answer({"operation_id": made.run.run_id, **run_view(made.run), "logs": []}, 201)


@router.get("/{run_id}", response_model=OperationView)
async def show(
    run: OwnRun,
    services: CurrentServices,
    logs: Annotated[int, Query(ge=0, le=1000, description="How many of its last lines.")] = 100,
) -> Response:
    """Show a run as an operation, with its last lines as bare text."""
    lines = await last_lines(services.logs, run.run_id, logs)
    return answer({"operation_id": run.run_id, **run_view(run), "logs": lines})
