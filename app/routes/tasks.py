"""`/tasks`: a run under the name of a task, for typed work of a project."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response

from app.routes.body import documents, json_body
from app.routes.deps import CurrentServices, CurrentUser, OwnRun
from app.routes.schemas import NewTask, RunFields, TaskView
from app.routes.submit import submit
from app.routes.views import answer, run_view

router = APIRouter(prefix="/tasks", tags=["tasks"])

_EXAMPLES = {"task": {"project": "default", "type": "seed-db", "params": {"reset": True}}}


@router.post(
    "", status_code=201, response_model=TaskView, openapi_extra=documents(NewTask, examples=_EXAMPLES)
)
async def create(
    body: Annotated[NewTask, json_body(NewTask)], user: CurrentUser, services: CurrentServices
) -> Response:
    """Make a task and queue it. No task types are declared yet, so every type is a 422."""
    fields = RunFields(project=body.project, type=body.type, command=body.command, params=body.params)
    made = await submit(services, user, fields, start=True)
    return answer({"task_id": made.run.run_id, **run_view(made.run)}, 201)


@router.get("/{run_id}", response_model=TaskView)
async def show(run: OwnRun) -> Response:
    """Show a run as a task."""
    return answer({"task_id": run.run_id, **run_view(run)})
