"""What is secret of this process itself: values of its settings, and what programs beside it could read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from pydantic import SecretStr

from app.config import Settings, environment
from app.stream.secret_values import inside, is_plain, secrets_in

_WEBHOOK_PREFIX = "whsec_"
_TOKEN_FILE = "token"  # noqa: S105 - where `up` keeps its token, in the data folder


def own_secrets(settings: Settings) -> Iterator[str]:
    """Yield every value of a secret setting, each of several, the passwords of addresses, and `up`'s token.

    A program on the worker's machine can read the worker's environment, so what is secret there counts too.
    """
    for setting in settings.flat().values():
        text = setting.get_secret_value() if isinstance(setting, SecretStr) else setting
        if isinstance(text, str):
            yield from inside(text)
        if isinstance(setting, SecretStr):
            yield from _each(setting.get_secret_value())
    if settings.storage.s3_access_key:
        yield settings.storage.s3_access_key
    yield from secrets_in(environment())
    with contextlib.suppress(OSError):  # there is none but under `up`
        yield (settings.data.folder / _TOKEN_FILE).read_text().strip()


def _each(secret: str) -> Iterator[str]:
    for value in (secret, *re.split(r"[\s,]+", secret)):
        if not is_plain(value):
            yield value
            yield value.removeprefix(_WEBHOOK_PREFIX)
