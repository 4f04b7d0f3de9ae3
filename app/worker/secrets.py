"""Which values must never leave in a line or a record: Tailrun's own, and those of runs and projects."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping

from pydantic import SecretStr

from app.config import Settings, environment
from app.execution.masking import Masker
from app.models import Run
from app.projects import ProjectConfig
from app.secret_names import inside, is_plain, secrets_in

_LARGE_CHARS = 4000
"""With more to look at, what hides it is made in a thread."""
_WEBHOOK_PREFIX = "whsec_"
_TOKEN_FILE = "token"  # noqa: S105 - where `up` keeps its token, in the data folder


class Secrets:
    """Makes the masker of each run; `shared` is that of all runs without secrets of their own."""

    def __init__(self, settings: Settings) -> None:
        self._own = list(dict.fromkeys(_own(settings)))
        self._patterns = settings.log_mask_patterns.split("\n") if settings.log_mask_patterns else []
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


def _own(settings: Settings) -> Iterator[str]:
    """Yield every value of a secret setting, each of several, the passwords of addresses, and `up`'s token.

    A program on the worker's machine can read the worker's environment, so what is secret there counts too.
    """
    for _, setting in settings:
        text = setting.get_secret_value() if isinstance(setting, SecretStr) else setting
        if isinstance(text, str):
            yield from inside(text)
        if isinstance(setting, SecretStr):
            yield from _each(setting.get_secret_value())
    if settings.s3_access_key:
        yield settings.s3_access_key
    yield from secrets_in(environment())
    with contextlib.suppress(OSError):  # there is none but under `up`
        yield (settings.data_dir / _TOKEN_FILE).read_text().strip()


def _each(secret: str) -> Iterator[str]:
    for value in (secret, *re.split(r"[\s,]+", secret)):
        if not is_plain(value):
            yield value
            yield value.removeprefix(_WEBHOOK_PREFIX)
