"""The shapes of projects, in and out."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from app.routes.schemas import Body

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
