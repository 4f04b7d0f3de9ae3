"""The shapes of projects, in and out.

Projects: what the programs of typed tasks are told. Written by admins.

Secrets are never shown; the values of paths and variables to admins only.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from app.core.clock import format_ts, now_us
from app.core.errors import Conflict, NotFound, Unprocessable
from app.db.project_store import Change, Project
from app.plan.projects import DEFAULT, is_project_id
from app.plan.run_fields import Body
from app.routes.auth import Admin, CurrentServices, CurrentUser
from app.routes.body import documents, json_body
from app.routes.views import answer

Texts = Annotated[dict[str, str], Field(max_length=100)]


class NewProject(Body):
    """Body of `PUT /v1/projects/{id}`: it replaces the project, but what is secret need not be sent again."""

    db_conn: str | None = Field(
        default=None,
        max_length=10_000,
        description="How programs reach the database, as `DB_CONN`. Left out: as it is; null: none.",
    )
    paths: Texts = Field(
        default_factory=dict[str, str],
        description="Folders and files by name: `${paths.NAME}` in a task type, and for programs "
        "the variable `PROJECT_PATH_NAME`.",
        examples=[{"uploads": "/data/uploads"}],
    )
    env: Texts = Field(
        default_factory=dict[str, str], description="Variables of the programs; shown to admins."
    )
    secrets: Annotated[dict[str, str | None], Field(max_length=100)] | None = Field(
        default=None,
        description="Variables that are never shown. A value null keeps the one that is there; a name "
        "left out goes. Left out as a whole: as they are.",
    )


class ProjectView(BaseModel):
    """A project; of what is secret only the names. Who is no admin sees `***` for each value."""

    id: str = Field(examples=["default"])
    db_conn: str | None = Field(description="`***` where there is one.")
    paths: dict[str, str]
    env: dict[str, str]
    secrets: list[str] = Field(description="Their names.")
    created_at: str
    updated_at: str


router = APIRouter(tags=["projects"])

_HIDDEN = "***"
_EXAMPLES = {
    "project": {
        "db_conn": "postgresql://agent:…@db/app",
        "paths": {"uploads": "/data/uploads"},
        "env": {"REGION": "eu"},
        "secrets": {"MODEL_KEY": "…"},
    }
}

ProjectId = Annotated[str, Path(max_length=64, description="A project's id.", examples=[DEFAULT])]


@router.get("/v1/projects/{project_id}", response_model=ProjectView)
@router.get("/projects/{project_id}", response_model=ProjectView)
async def show(project_id: ProjectId, user: CurrentUser, services: CurrentServices) -> Response:
    """Show a project; of its secrets the names alone, and of `paths` and `env` too unless to an admin."""
    project = await services.projects.get(project_id)
    if project is None:
        raise _none(project_id)
    return answer(_view(project, values=user.admin))


@router.put(
    "/v1/projects/{project_id}",
    response_model=ProjectView,
    responses={201: {"model": ProjectView, "description": "The project is new."}},
    openapi_extra=documents(NewProject, examples=_EXAMPLES),
)
async def put(
    project_id: ProjectId,
    _admin: Admin,
    body: Annotated[NewProject, json_body(NewProject)],
    services: CurrentServices,
) -> Response:
    """Make or replace a project; runs that have begun keep what they were given."""
    if not is_project_id(project_id):
        raise Unprocessable("A project's id is 1 to 63 letters, digits, '.', '_' or '-'.")
    change = Change(
        paths=body.paths,
        env=body.env,
        sets_db_conn="db_conn" in body.model_fields_set,
        db_conn=body.db_conn or None,
        secrets=body.secrets,
    )
    project, fresh = await services.projects.put(project_id, change, now_us())
    return answer(_view(project, values=True), 201 if fresh else 200)


@router.delete("/v1/projects/{project_id}", status_code=204)
async def drop(project_id: ProjectId, _admin: Admin, services: CurrentServices) -> Response:
    """Delete a project; tasks of it that wait will fail, for their programs need what it said."""
    if project_id == DEFAULT:
        raise Conflict(f"Project {DEFAULT!r} is the one of tasks that name none; PUT an empty one instead.")
    if not await services.projects.delete(project_id):
        raise _none(project_id)
    return Response(status_code=204)


def _none(project_id: str) -> NotFound:
    return NotFound(f"There is no project {project_id[:64]!r}.")


def _view(project: Project, *, values: bool) -> dict[str, Any]:
    """Return a project; without `values` it shows which variables programs get, not what is in them."""
    return {
        "id": project.project_id,
        "db_conn": _HIDDEN if project.has_db_conn else None,
        "paths": project.paths if values else dict.fromkeys(project.paths, _HIDDEN),
        "env": project.env if values else dict.fromkeys(project.env, _HIDDEN),
        "secrets": project.secret_names,
        "created_at": format_ts(project.created_at),
        "updated_at": format_ts(project.updated_at),
    }
