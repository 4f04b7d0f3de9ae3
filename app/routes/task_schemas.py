"""The shapes of task types and of what clients of tasks and operations send and get."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from app.tasks.declarations import Kind


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
