"""Where a worker gets a project's configuration from, once per attempt at a task.

Its own database, or with `PROJECTS_URL` an external service, which answers
`GET {PROJECTS_URL}/projects/{id}` with `{"db_conn", "paths", "env"}` (and `secrets`, if it likes).

Which values must never leave in a line or a record: Tailrun's own, and those of runs and projects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.config import ProjectsSettings, Settings
from app.core.errors import TailrunError
from app.core.models import Run
from app.db.project_store import ProjectStore
from app.llm.models_file import load as load_models
from app.plan.explain import explain
from app.plan.projects import ProjectConfig, check_project
from app.stream.masking import Masker
from app.stream.own_secrets import own_secrets
from app.stream.secret_values import inside, secrets_in
from tailrun.process.errors import ErrorCode, RunFailure

TRIES, TIMEOUT_S = 3, 5.0
_PAUSE_S = 0.25
_NOT_FOUND = 404
_BUSY = 429
_SERVER_ERROR = 500

Texts = Annotated[dict[str, str], Field(default_factory=dict[str, str])]


class _Upstream(BaseModel):
    """The service's answer; a null is as good as nothing, and unknown fields are its own business."""

    model_config = ConfigDict(extra="ignore", strict=True)

    db_conn: str | None = None
    paths: Texts
    env: Texts
    secrets: Texts


class ProjectSource:
    """Fetches configurations; one of a worker, closed at its end."""

    def __init__(self, store: ProjectStore, settings: ProjectsSettings) -> None:
        self._store = store
        self._url = settings.url.rstrip("/")
        token = settings.token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self._http = httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_S) if self._url else None

    async def close(self) -> None:
        """Close the connections."""
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
        except TailrunError as error:
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


_LARGE_CHARS = 4000
"""With more to look at, what hides it is made in a thread."""


class Secrets:
    """Makes the masker of each run; `shared` is that of all runs without secrets of their own."""

    def __init__(self, settings: Settings) -> None:
        own = (*own_secrets(settings), *load_models(settings.llm).secrets())
        self._own = list(dict.fromkeys(own))
        self._patterns = settings.log.mask_patterns.split("\n") if settings.log.mask_patterns else []
        self.shared = Masker(self._own, self._patterns)

    async def masker(self, run: Run, project: ProjectConfig | None = None) -> Masker:
        """Return what hides this run's secrets: its project's, and those of its own variables.

        How many there are is bounded where they come in: by the limits on `env` and on a project.
        """
        env: Mapping[str, str] = {**(project.env if project else {}), **(run.spec.get("env") or {})}
        secrets = _hidden(project) if project else []
        if not env and not secrets:
            return self.shared
        if sum(map(len, [*env.values(), *secrets])) > _LARGE_CHARS:
            return await asyncio.to_thread(self._make, env, secrets)
        return self._make(env, secrets)

    def _make(self, env: Mapping[str, str], secrets: list[str]) -> Masker:
        values = [*secrets_in(env), *secrets]
        return Masker([*self._own, *values], self._patterns) if values else self.shared


def _hidden(project: ProjectConfig) -> list[str]:
    """Return a project's secrets; of an address with a password also the password alone."""
    secrets = project.hidden()
    return [*secrets, *(part for secret in secrets for part in inside(secret))]
