"""Which values must never leave in a line: Tailrun's own credentials, and a run's by their names."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit

from app.config import Settings
from app.execution.masking import Masker
from app.models import Run
from app.projects import ProjectConfig
from app.redis.address import RedisAddress

_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY", re.IGNORECASE
)


class Secrets:
    """Makes the masker of each run; runs without secrets of their own share one."""

    def __init__(self, settings: Settings) -> None:
        self._own = list(_own(settings))
        self._patterns = settings.log_mask_patterns.split("\n") if settings.log_mask_patterns else []
        self._shared = Masker(self._own, self._patterns)

    def masker(self, run: Run, project: ProjectConfig | None = None) -> Masker:
        """Return what hides this run's secrets: its project's, and values of variables whose name says so."""
        env: dict[str, str] = {**(run.spec.get("env") or {}), **(project.env if project else {})}
        values = [value for name, value in env.items() if _SECRET_NAME.search(name)]
        values += _hidden(project) if project else []
        return Masker([*self._own, *values], self._patterns) if values else self._shared


def _hidden(project: ProjectConfig) -> list[str]:
    """Return a project's secrets; of an address with a password also the password alone."""
    password = _password(project.db_conn or "")
    return [*project.hidden(), *({password, unquote(password)} if password else ())]


def _password(address: str) -> str:
    try:
        return urlsplit(address).password or ""
    except ValueError:  # no address at all: hidden as a whole
        return ""


def _own(settings: Settings) -> list[str]:
    secrets = (
        settings.api_token,
        settings.s3_secret_key,
        settings.redis_sentinel_password,
        settings.upstash_redis_rest_token,
        settings.projects_key,
        settings.projects_token,
    )
    found = [secret.get_secret_value() for secret in secrets if secret]
    for password in (
        urlsplit(settings.effective_database_url).password,
        RedisAddress.of(settings).password,
    ):
        if password:
            found += {password, quote(password, safe=""), unquote(password)}
    return found
