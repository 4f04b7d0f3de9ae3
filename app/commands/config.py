"""`tailrun config`, `tailrun tasks check`, and how every process command reads its settings."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailrun.commands.connection import CliError

if TYPE_CHECKING:
    from app.config import Settings

_LOGIN = re.compile(r"(?<=://).*@|\?.*", re.DOTALL)
"""What may be secret in a URL: all before the last `@`, and the query."""


def settings() -> Settings:
    """Read the settings from the environment; what is wrong there is a usage error."""
    from pydantic import ValidationError  # noqa: PLC0415 - 0.3 s that `--help` need not pay

    from app.config import Settings  # noqa: PLC0415
    from app.redis.address import BadAddress, RedisAddress, RestAddress  # noqa: PLC0415

    try:
        chosen = Settings()
        RedisAddress.of(chosen.redis)
        RestAddress.of(chosen.redis)
    except ValidationError as error:
        wrong = "; ".join(f"{str(each['loc'][-1]).upper()}: {each['msg']}" for each in error.errors())
        raise CliError(f"{wrong} (see docs/configuration.md)", 2) from error
    except BadAddress as error:
        raise CliError(f"{error} (see docs/configuration.md)", 2) from error
    return chosen


def config() -> None:
    """Print every setting as this process reads it from its environment, without its secrets."""
    for name, value in settings().flat().items():
        print(f"{name}={shown(value)}")


def shown(value: object) -> str:
    """Write a value so that everybody may see it; of a URL that holds a login the rest stays."""
    from pydantic import SecretStr  # noqa: PLC0415 - 0.3 s that `--help` need not pay

    if value is None:
        return ""
    if isinstance(value, SecretStr):
        text = value.get_secret_value()
        return _LOGIN.sub(_hidden, text) if "://" in text else "***"
    return str(value)


def _hidden(found: re.Match[str]) -> str:
    return "***@" if found.group().endswith("@") else "?***"


def check_tasks(
    file: Annotated[
        Path | None, typer.Argument(help="A tasks.yaml; left out: TASKS_FILE.", show_default=False)
    ] = None,
) -> None:
    """Look for mistakes in a tasks.yaml; each is shown with its line."""
    from app.plan.task_types import SHIPPED, BadTasksFile, load  # noqa: PLC0415 - `--help` needs neither

    path = file or settings().tasks.file
    try:
        types = load(path).types
    except BadTasksFile as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from error
    print(f"{path or SHIPPED}: {len(types)} task types: {', '.join(types)}")
