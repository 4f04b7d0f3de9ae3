"""Where a worker gets a project's configuration from, once per attempt at a task.

Its own database, or with `PROJECTS_URL` a service of somebody else's, which answers
`GET {PROJECTS_URL}/projects/{id}` with `{"db_conn", "paths", "env"}` (and `secrets`, if it likes).
"""

from __future__ import annotations

import asyncio
from typing import Annotated
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.catalogue_errors import explain
from app.config import Settings
from app.db.project_store import ProjectStore
from app.errors import ErrorCode, RunFailure, StorageError, TailrunError
from app.projects import ProjectConfig, check_project

TRIES = 3
_PAUSE_S = 0.25
_NOT_FOUND = 404
_BUSY = 429
_SERVER_ERROR = 500

Texts = Annotated[dict[str, str], Field(default_factory=dict[str, str])]


class _Upstream(BaseModel):
    """What the service answers; a null is as good as nothing, and unknown fields are its own business."""

    model_config = ConfigDict(extra="ignore", strict=True)

    db_conn: str | None = None
    paths: Texts
    env: Texts
    secrets: Texts


class ProjectSource:
    """Fetches configurations; one of a worker, closed at its end."""

    def __init__(self, store: ProjectStore, settings: Settings) -> None:
        self._store = store
        self._url = settings.projects_url.rstrip("/")
        token = settings.projects_token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        timeout = settings.projects_timeout_s
        self._http = httpx2.AsyncClient(headers=headers, timeout=timeout) if self._url else None

    async def close(self) -> None:
        """Let go of the connections."""
        if self._http is not None:
            await self._http.aclose()

    async def fetch(self, project_id: str) -> ProjectConfig:
        """Return the configuration with its secrets.

        Raises:
            RunFailure: PROJECT_UNAVAILABLE; final where there is no such project.
        """
        try:
            if self._http is not None:
                return await self._ask(self._http, project_id)
            found = await self._store.load(project_id)
        except (StorageError, TailrunError) as error:
            raise _failure(f"project {project_id!r} can't be read: {error}") from error
        if found is None:
            raise _failure(f"there is no project {project_id!r} (any more)", final=True)
        return found

    async def _ask(self, http: httpx2.AsyncClient, project_id: str) -> ProjectConfig:
        """Ask up to `TRIES` times while the service does not answer, or answers that it can't."""
        said = ""
        for tried in range(TRIES):
            await asyncio.sleep(_PAUSE_S * (2**tried - 1))
            try:
                answer = await http.get(f"{self._url}/projects/{quote(project_id, safe='')}")
            except httpx2.TransportError as error:
                said = str(error) or type(error).__name__
                continue
            if answer.status_code == _NOT_FOUND:
                raise _failure(f"PROJECTS_URL knows no project {project_id!r}", final=True)
            if answer.is_success:
                return _read(project_id, answer.content)
            said = f"status {answer.status_code}"
            if answer.status_code < _SERVER_ERROR and answer.status_code != _BUSY:
                break
        raise _failure(f"PROJECTS_URL did not give project {project_id!r}: {said}")


def _read(project_id: str, body: bytes) -> ProjectConfig:
    try:
        said = _Upstream.model_validate_json(body)
        config = ProjectConfig(project_id, said.db_conn, said.paths, said.env, said.secrets)
        check_project(config)
    except ValidationError as error:
        wrong = explain(error, _Upstream) if error.errors()[0]["type"] != "json_invalid" else "it is no JSON"
        raise _failure(f"PROJECTS_URL answered something else than a project: {wrong}") from None
    except TailrunError as error:
        raise _failure(f"PROJECTS_URL gave what no program can be given: {error.message}") from None
    return config


def _failure(message: str, *, final: bool = False) -> RunFailure:
    return RunFailure(ErrorCode.PROJECT_UNAVAILABLE, message, retried=False if final else None)
