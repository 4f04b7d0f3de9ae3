"""`tailrun config` and `--version`: what a person asks a process in a container first."""

from __future__ import annotations

import re

import typer

from app import VERSION
from app.commands.config import settings

_LOGIN = re.compile(r"(?<=://).*@|\?.*", re.DOTALL)
"""What may be secret in a URL: all before the last `@`, and the query."""


def config() -> None:
    """Print every setting as this process reads it from its environment, without its secrets."""
    chosen = settings()
    for name in type(chosen).model_fields:
        print(f"{name.upper()}={shown(getattr(chosen, name))}")


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


def _print_version(asked: bool) -> None:
    if asked:
        print(f"tailrun {VERSION}")
        raise typer.Exit


def root(
    *,
    _version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Show the version."
    ),
) -> None:
    """Run it, tail it: agent jobs on your own machines."""
