"""The shapes of task types and of what clients of tasks and operations send and get.

`/tasks`: a run under the name of a task, for typed work of a project; and what types there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from app.plan.run_fields import RunFields
from app.plan.task_values import Kind, Param, TaskType
from app.routes.auth import CurrentServices, CurrentUser, OwnRun
from app.routes.body import IdempotencyKey, documents, json_body, made_before
from app.routes.schemas import NewTask, TaskView
from app.routes.views import answer, run_view
from app.runs.submit import submit


class ParamView(BaseModel):
    """One parameter of a task type."""

    type: Kind
    help: str
    required: bool
    default: Any
    choices: list[Any] | None
    min: float | None
    max: float | None


class CommandView(BaseModel):
    """One command of a task type."""

    help: str
    params: dict[str, ParamView]


class TaskTypeView(BaseModel):
    """A task type: what `type`, `command` and `params` may be."""

    type: str
    help: str
    timeout_s: float | None
    params: dict[str, ParamView]
    commands: dict[str, CommandView]


class TaskTypeList(BaseModel):
    """Every task type that is declared."""

    items: list[TaskTypeView]
    next: None = None


router = APIRouter(tags=["tasks"])

_EXAMPLES = {
    "seed": {"project": "default", "type": "seed-db", "params": {"reset": True}},
    "agent": {
        "project": "default",
        "type": "agent",
        "command": "run",
        "params": {"input": "Analyze all MB attributes for Q1", "parallel_workers": 3},
    },
}


@router.post(
    "/tasks",
    status_code=201,
    response_model=TaskView,
    responses=made_before(TaskView),
    openapi_extra=documents(NewTask, examples=_EXAMPLES),
)
async def create(
    body: Annotated[NewTask, json_body(NewTask)],
    user: CurrentUser,
    services: CurrentServices,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make a task of a declared type and queue it."""
    fields = RunFields(**body.model_dump())
    made = await submit(services, user, fields, start=True, idempotency_key=idempotency_key)
    return answer({"task_id": made.run.run_id, **run_view(made.run)}, 201 if made.fresh else 200)


@router.get("/tasks/{run_id}", response_model=TaskView)
async def show(run: OwnRun) -> Response:
    """Show a run as a task."""
    return answer({"task_id": run.run_id, **run_view(run)})


@router.get("/v1/task-types", response_model=TaskTypeList)
async def list_types(_user: CurrentUser, services: CurrentServices) -> Response:
    """List the task types, with their commands and parameters."""
    types = services.task_types.types
    return answer({"items": [_type_view(name, task) for name, task in types.items()], "next": None})


def _type_view(name: str, task: TaskType) -> dict[str, Any]:
    declared = {command: task.declared(command) for command in task.commands}
    return {
        "type": name,
        "help": task.help,
        "timeout_s": task.timeout_s,
        "params": _params_view({} if declared else task.params),
        "commands": {
            command: {"help": found.help, "params": _params_view(found.params)}
            for command, found in declared.items()
        },
    }


def _params_view(params: Mapping[str, Param]) -> dict[str, Any]:
    shown = {"type", "help", "required", "default", "choices", "min", "max"}
    return {name: param.model_dump(include=shown) for name, param in params.items()}
