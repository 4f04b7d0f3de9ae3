"""A project: configuration that its tasks' programs get as environment. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.core.errors import Unprocessable
from app.core.names import check_env

DEFAULT = "default"
"""The project of a task that names none; `migrate` makes it, and it can't be deleted."""

DB_CONN = "DB_CONN"
"""The variable in which a program finds `db_conn`."""

DATA = "PROJECT_DATA"
"""The variable in which a program on the worker's machine finds a folder that its project's tasks share."""

MAX_BYTES = 64_000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PATH_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class ProjectConfig:
    """A project's configuration with its secrets, as programs get it. Never shown, never logged."""

    project_id: str = DEFAULT
    db_conn: str | None = None
    paths: Mapping[str, str] = field(default_factory=dict[str, str])
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    secrets: Mapping[str, str] = field(default_factory=dict[str, str])

    def __repr__(self) -> str:
        """Show the project's id, and nothing of its content."""
        return f"ProjectConfig({self.project_id!r})"

    def variables(self) -> dict[str, str]:
        """Return the environment that it means: `PROJECT_ID`, `PROJECT_PATH_…`, `env`, `DB_CONN`, secrets."""
        paths = {path_variable(name): path for name, path in self.paths.items()}
        conn = {} if self.db_conn is None else {DB_CONN: self.db_conn}
        return {"PROJECT_ID": self.project_id, **paths, **self.env, **conn, **self.secrets}

    def hidden(self) -> list[str]:
        """Return the values that must not appear in a line."""
        return [*([self.db_conn] if self.db_conn else []), *self.secrets.values()]


def folder_name(project_id: str) -> str:
    """Return a file's name for the project; what PROJECTS_URL calls a project may be no file's name."""
    return (
        project_id
        if is_project_id(project_id)
        else hashlib.sha256(project_id.encode("utf-8", "replace")).hexdigest()
    )


def path_variable(name: str) -> str:
    """Return the variable in which a program finds a path of the project."""
    return "PROJECT_PATH_" + name.upper().replace("-", "_")


def is_project_id(text: str) -> bool:
    """Whether a project may be called so."""
    return _ID.fullmatch(text) is not None


def check_project(config: ProjectConfig) -> None:
    """Refuse what no program could be given.

    Raises:
        Unprocessable: names the field and what is wrong with it; never a secret's value.
    """
    for name in config.paths:
        if not _PATH_NAME.fullmatch(name):
            raise Unprocessable(
                f"paths: {name[:64]!r} is no name; use a letter, then letters, digits, _ and -."
            )
    _check_variables(config)
    both = sorted(config.env.keys() & config.secrets.keys())
    if both:
        raise Unprocessable(f"{both[0]} is in env and in secrets; it can be in one of the two.")
    if config.db_conn is not None and DB_CONN in {**config.env, **config.secrets}:
        raise Unprocessable(f"{DB_CONN} is the variable of db_conn; set one of the two.")
    texts = [*config.variables().items(), *((name, "") for name in config.paths)]
    if sum(len(name) + len(text.encode("utf-8", "replace")) for name, text in texts) > MAX_BYTES:
        raise Unprocessable(f"A project must be at most {MAX_BYTES} bytes long in all.")


def _check_variables(config: ProjectConfig) -> None:
    for field_name, variables in (("env", config.env), ("secrets", config.secrets)):
        try:
            check_env(variables)
        except Unprocessable as error:
            raise Unprocessable(error.message.replace("env:", f"{field_name}:", 1)) from None
    for field_name, text in (
        ("db_conn", config.db_conn or ""),
        *(("paths", p) for p in config.paths.values()),
    ):
        if "\0" in text:
            raise Unprocessable(f"{field_name} holds a NUL character.")
