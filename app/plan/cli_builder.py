"""A task → its argv. A pure function: what it was given decides, nothing else.

    program, args, command's args | positions 1, 2, … | flags in the order of their declaration

A list of words, never a shell string. A boolean is a flag that is there or not; numbers are
written as strings. Why a value can't become an option: `app.plan.task_values`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from app.core.errors import Unprocessable
from app.plan.projects import ProjectConfig
from app.plan.task_types import TaskCall
from app.plan.task_values import PLACE, Param, is_workspace_path, text_of


def build(task: TaskCall, project: ProjectConfig, workspace: str = "") -> list[str]:
    """Return the argv of `task`.

    `workspace` is the folder that holds the run's files: relative file parameters are put below
    it. Empty, they stay as they were sent, which is right where the program runs in that folder.

    Raises:
        Unprocessable: the declaration names a path that the project does not have.
    """
    values = {name: value for name, value in _values(task, project, workspace) if value is not None}
    params = task.declared.params
    words = [fill(word, project) for word in (*task.type.program, *_names(task))]
    placed = sorted((name for name in values if params[name].position), key=lambda name: _place(params[name]))
    words += [text_of(values[name]) for name in placed]
    for name, param in params.items():
        if name in values and param.position is None:
            words += _option(param.flag_of(name), values[name])
    return words


def environment(task: TaskCall, project: ProjectConfig) -> dict[str, str]:
    """Return the variables of the type, then of the project; the project's win."""
    return {name: fill(text, project) for name, text in task.type.env.items()} | project.variables()


def folder(task: TaskCall, project: ProjectConfig) -> str | None:
    """Return where the program is to run; None: in the run's files."""
    return None if task.type.cwd is None else fill(task.type.cwd, project)


def fill(text: str, project: ProjectConfig) -> str:
    """Put the project's paths in for `${paths.NAME}`; `Unprocessable` names one that is missing."""

    def path(match: re.Match[str]) -> str:
        if match[1] not in project.paths:
            raise Unprocessable(
                f"Project {project.project_id!r} has no path {match[1]!r}, which the task needs."
            )
        return project.paths[match[1]]

    return PLACE.sub(path, text)


def _names(task: TaskCall) -> list[str]:
    args = [task.name] if task.type.args is None else task.type.args
    if task.command is None:
        return args
    return [*args, *([task.command] if task.declared.args is None else task.declared.args)]


def _values(task: TaskCall, project: ProjectConfig, workspace: str) -> Iterator[tuple[str, Any]]:
    for name, param in task.declared.params.items():
        value = task.params.get(name)
        if value is None:
            value = fill(param.default, project) if isinstance(param.default, str) else param.default
        yield name, _located(value, workspace) if param.type == "file" and value is not None else value


def _located(path: str, workspace: str) -> str:
    if not is_workspace_path(path):
        return path
    if workspace:
        return f"{workspace.rstrip('/')}/{path}"
    return f"./{path}" if path.startswith("-") else path


def _place(param: Param) -> int:
    return param.position or 0


def _option(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag] if value else []
    text = text_of(value)
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]
