"""Projects in the database: what is open in `config`, what is secret sealed in `secrets`.

The names of secrets are open, so that a project can be shown by a process without the key.

What is secret in a row: encrypted with `PROJECTS_KEY`, and bound to its row.

Fernet (AES-128-CBC and HMAC-SHA256), with several keys for a change of keys: the first one seals,
each of them opens. The row's id is sealed in, so that a text moved to another row opens nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson
from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.core.errors import Unavailable
from app.db.engine import Database
from app.db.row_codec import from_json, to_json
from app.db.tables import projects
from app.plan.projects import ProjectConfig, check_project


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project without its secrets: their names, and whether there is a `db_conn`. Times in microseconds."""

    project_id: str
    has_db_conn: bool
    paths: dict[str, str]
    env: dict[str, str]
    secret_names: list[str]
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of a project.

    `db_conn`: None takes it away; left as it is unless `sets_db_conn`. `secrets`: the whole of
    them, where None keeps the value that is there; the argument None keeps them all.
    """

    paths: dict[str, str]
    env: dict[str, str]
    sets_db_conn: bool = False
    db_conn: str | None = None
    secrets: Mapping[str, str | None] | None = None


class ProjectStore:
    """Every call may raise `StorageError`, and `Unavailable` where a secret needs a key."""

    def __init__(self, db: Database, keys: str | None) -> None:
        self._db = db
        self._seal = Seal(keys)

    async def exists(self, project_id: str) -> bool:
        """Whether there is such a project."""
        query = select(projects.c.id).where(projects.c.id == project_id)
        return await self._db.read_one(lambda connection: connection.execute(query).first()) is not None

    async def get(self, project_id: str) -> Project | None:
        """Return a project without its secrets."""
        row = await self._db.read_one(lambda connection: _row(connection, project_id))
        return None if row is None else _project(row)

    async def load(self, project_id: str) -> ProjectConfig | None:
        """Return a project with its secrets: for the worker that runs its tasks."""
        row = await self._db.read_one(lambda connection: _row(connection, project_id))
        return None if row is None else self._config(row)

    async def put(self, project_id: str, change: Change, now: int) -> tuple[Project, bool]:
        """Make or replace a project; return it, and whether it is new.

        Raises:
            Unprocessable: as `check_project`.
        """
        return await self._db.write(lambda connection: self._put(connection, project_id, change, now))

    async def delete(self, project_id: str) -> bool:
        """Forget a project; whether there was one."""
        statement = delete(projects).where(projects.c.id == project_id)
        return await self._db.write_one(lambda connection: connection.execute(statement).rowcount) > 0

    async def reseal(self) -> list[str]:
        """Seal every project anew, with the first key; return their ids."""
        return await self._db.write(self._reseal)

    def _put(self, connection: Connection, project_id: str, change: Change, now: int) -> tuple[Project, bool]:
        row = _row(connection, project_id, for_update=True)
        before = ProjectConfig(project_id) if row is None else self._before(row, change)
        after = _changed(before, change)
        check_project(after)
        values = {
            "config": to_json(_open_part(after)),
            "secrets": self._sealed(after),
            "created_at": now if row is None else row["created_at"],
            "updated_at": now,
        }
        if row is None:
            insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            statement = insert(projects).values(id=project_id, **values).on_conflict_do_nothing()
            if not connection.execute(statement).rowcount:  # another request made it just now
                return self._put(connection, project_id, change, now)
        else:
            connection.execute(update(projects).where(projects.c.id == project_id).values(**values))
        return _project({"id": project_id, **values}), row is None

    def _before(self, row: Mapping[str, Any], change: Change) -> ProjectConfig:
        """Open what is there only if some of it is kept: a lost key must not make a project immutable."""
        values = change.secrets.values() if change.secrets is not None else [None]
        if change.sets_db_conn and all(value is not None for value in values):
            return ProjectConfig(row["id"])
        return self._config(row)

    def _config(self, row: Mapping[str, Any]) -> ProjectConfig:
        shown, sealed = from_json(row["config"], {}, "projects.config"), row["secrets"]
        hidden = self._seal.open(row["id"], sealed) if sealed is not None else {}
        return ProjectConfig(
            row["id"],
            hidden.get("db_conn"),
            shown.get("paths", {}),
            shown.get("env", {}),
            hidden.get("secrets", {}),
        )

    def _sealed(self, config: ProjectConfig) -> str | None:
        if config.db_conn is None and not config.secrets:
            return None
        content = {"db_conn": config.db_conn, "secrets": dict(config.secrets)}
        return self._seal.close(config.project_id, content)

    def _reseal(self, connection: Connection) -> list[str]:
        found = connection.execute(select(projects).where(projects.c.secrets.is_not(None))).mappings().all()
        for row in found:
            sealed = self._sealed(self._config(cast("Mapping[str, Any]", row)))
            connection.execute(update(projects).where(projects.c.id == row["id"]).values(secrets=sealed))
        return [row["id"] for row in found]


def _row(connection: Connection, project_id: str, *, for_update: bool = False) -> Mapping[str, Any] | None:
    query = select(projects).where(projects.c.id == project_id)
    row = connection.execute(query.with_for_update() if for_update else query).mappings().first()
    return cast("Mapping[str, Any] | None", row)


def _changed(before: ProjectConfig, change: Change) -> ProjectConfig:
    given = before.secrets if change.secrets is None else change.secrets
    kept = {name: before.secrets.get(name) if value is None else value for name, value in given.items()}
    return ProjectConfig(
        before.project_id,
        change.db_conn if change.sets_db_conn else before.db_conn,
        change.paths,
        change.env,
        {name: value for name, value in kept.items() if value is not None},
    )


def _open_part(config: ProjectConfig) -> dict[str, Any]:
    return {
        "paths": dict(config.paths),
        "env": dict(config.env),
        "db_conn": config.db_conn is not None,
        "secrets": sorted(config.secrets),
    }


def _project(row: Mapping[str, Any]) -> Project:
    shown = from_json(row["config"], {}, "projects.config")
    return Project(
        project_id=row["id"],
        has_db_conn=shown.get("db_conn", False),
        paths=shown.get("paths", {}),
        env=shown.get("env", {}),
        secret_names=shown.get("secrets", []),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


class Seal:
    """Seals and opens small JSON objects. `keys`: `PROJECTS_KEY`; None: nothing secret can be kept."""

    def __init__(self, keys: str | None) -> None:
        self._keys = [key.strip() for key in keys.split(",")] if keys else []

    def close(self, row: str, content: dict[str, Any]) -> str:
        """Return `content` as a text for this row.

        Raises:
            Unavailable: code `no_projects_key`.
        """
        return self._fernet().encrypt(orjson.dumps({"row": row, "content": content})).decode()

    def open(self, row: str, sealed: str) -> dict[str, Any]:
        """Return what was sealed for this row.

        Raises:
            Unavailable: code `no_projects_key`, or `wrong_projects_key` where no key fits.
        """
        from cryptography.fernet import InvalidToken  # noqa: PLC0415 - slow to import, rarely needed

        try:
            body = cast("dict[str, Any]", orjson.loads(self._fernet().decrypt(sealed)))
        except InvalidToken:
            body = {}
        if body.get("row") != row:
            raise Unavailable(
                f"What project {row!r} keeps secret can't be opened: PROJECTS_KEY is not the key that "
                "sealed it. Put that key behind the new one, after a comma.",
                code="wrong_projects_key",
            )
        return body["content"]

    def _fernet(self) -> Any:
        from cryptography.fernet import Fernet, MultiFernet  # noqa: PLC0415

        if not self._keys:
            raise Unavailable(
                "Secrets of projects can't be kept or read: PROJECTS_KEY is not set here. `tailrun up` makes "
                "one by itself; elsewhere give API and workers the same key (docs/tasks.md).",
                code="no_projects_key",
            )
        return MultiFernet([Fernet(key) for key in self._keys])
