"""Where the client commands find the server: flags, then the environment, then what `up` wrote."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tailrun import Client
    from tailrun.commands.serving import Serving

Url = Annotated[
    str | None,
    typer.Option("--url", envvar=["TAILRUN_URL", "API"], help="The server.", rich_help_panel="Connection"),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", envvar=["TAILRUN_TOKEN", "TOKEN"], help="Your token.", rich_help_panel="Connection"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunId = Annotated[
    str,
    typer.Argument(metavar="RUN", help="The run's id, its first characters (4 or more), or `last`."),
]

ENV_REDIS_URL = "TAILRUN_ENV_REDIS_URL"
"""The REDIS_URL that `tailrun env` gave a shell, so that `up` can tell it from one of the user's own."""

_SHORTEST = 4
_FULL = 36
"""Characters of a whole run id, a UUID."""
_PAGE = 200


class CliError(Exception):
    """Ends a command with a message and an exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def serving() -> Serving | None:
    """Return what the `up` of this folder (`DATA_DIR`) wrote."""
    from tailrun.commands.serving import read_serving  # noqa: PLC0415 - `--help` needs neither

    return read_serving(data_dir())


def data_dir() -> Path:
    """Return the data folder that the environment names (`DATA_DIR`)."""
    return Path(os.environ.get("DATA_DIR", "").strip() or ".tailrun")


def target(url: str | None, token: str | None) -> tuple[str, str]:
    """Return URL and token. The token of `up` goes to no other server than that one.

    What ends in a newline was read from a file, and none of them has one.
    """
    url = None if url is None else url.strip()
    token = None if token is None else token.rstrip("\r\n")
    if url is not None and token is not None:
        return url, token
    here = serving()
    if url is None and here is None:
        raise CliError(
            f"No server: no `tailrun up` is running on {data_dir().resolve()}. Start one, "
            "or name a server with --url and --token (or API and TOKEN in the environment)",
        )
    chosen = url or (here.url if here is not None else "")
    if token is None and here is not None and chosen.rstrip("/") == here.url:
        token = here.token
    if token is None:
        raise CliError(f"No token for {chosen}: give --token, or TOKEN in the environment")
    return chosen, token


@contextmanager
def connect(url: str | None, token: str | None) -> Generator[Client]:
    """Open a client of the API."""
    from tailrun import Client  # noqa: PLC0415

    with Client(*target(url, token)) as client:
        yield client


def resolve(client: Client, run: str) -> str:
    """Turn `last`, or the first characters of an id, into a run id."""
    run = run.lower()
    if run == "last":
        newest = client.list(limit=1)["items"]
        if not newest:
            raise CliError("There is no run yet: tailrun run -- echo hello")
        return newest[0]["run_id"]
    if len(run) == _FULL or _known(client, run):
        return run
    if len(run) < _SHORTEST:
        raise CliError(f"{run!r} is too short for a run id: {_SHORTEST} characters or more, or `last`", 2)
    found = [item for item in _recent(client) if item["run_id"].startswith(run)]
    if len(found) == 1:
        return found[0]["run_id"]
    if found:
        ids = ", ".join(item["run_id"] for item in found[:5])
        raise CliError(f"{run!r} could be any of {ids}: give more characters", 2)
    raise CliError(f"There is no run {run!r}: see `tailrun ls`")


def _known(client: Client, run: str) -> bool:
    from tailrun import Invalid, NotFound  # noqa: PLC0415

    try:
        client.get(run)
    except (NotFound, Invalid):
        return False
    return True


def _recent(client: Client) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor = None
    while len(items) < 5 * _PAGE:
        page = client.list(limit=_PAGE, cursor=cursor)
        items += page["items"]
        cursor = page["next"]
        if cursor is None:
            break
    return items
