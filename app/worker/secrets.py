"""Which values must never leave in a line: Tailrun's own credentials, and a run's by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit

from app.config import Settings
from app.execution.masking import Masker
from app.models import Run
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

    def masker(self, run: Run) -> Masker:
        """Return what hides this run's secrets: values of variables whose name says so."""
        env: Mapping[str, str] = run.spec.get("env") or {}
        values = [value for name, value in env.items() if _SECRET_NAME.search(name)]
        return Masker([*self._own, *values], self._patterns) if values else self._shared


def _own(settings: Settings) -> list[str]:
    secrets = (
        settings.api_token,
        settings.s3_secret_key,
        settings.redis_sentinel_password,
        settings.upstash_redis_rest_token,
    )
    found = [secret.get_secret_value() for secret in secrets if secret]
    for password in (
        urlsplit(settings.effective_database_url).password,
        RedisAddress.of(settings).password,
    ):
        if password:
            found += {password, quote(password, safe=""), unquote(password)}
    return found
