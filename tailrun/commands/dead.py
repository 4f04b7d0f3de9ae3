"""Client commands on the dead letters: list, show, retry, drop; one, many or all."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailrun.ansi import one_line
from tailrun.commands.connection import CliError, Json, Token, Url, connect, resolve
from tailrun.commands.render import renderer
from tailrun.commands.tables import fields, table

if TYPE_CHECKING:
    from tailrun import Client

app = typer.Typer(help="List, show, retry and drop dead letters.", no_args_is_help=True)

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID…", help="Ids of letters, or of their runs.", show_default=False),
]
All = Annotated[
    bool, typer.Option("--all", help="All letters that you may see; `retry` takes those that have a run.")
]
_SHOWN = 200
"""Characters of an error in a table."""


@app.command("list")
def list_letters(
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="At most so many.")] = 50,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List dead letters, newest first: runs that were given up, and entries that were none."""
    with connect(url, token) as client:
        page = client.dead(limit=limit)
    if as_json:
        print(json.dumps(page, indent=2))
        return
    table(("ID", "RUN", "REASON", "ERROR", "AT"), [_row(item) for item in page["items"]])


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    run_id, reason, at = (str(item.get(name) or "-") for name in ("run_id", "reason", "at"))
    return (item["id"], run_id, reason, _said(item)[:_SHOWN], at)


def _said(item: dict[str, Any]) -> str:
    error = item.get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else str(error or item.get("raw") or "")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="The letter's id, or its run's.")],
    *,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, max=1000, help="Last lines of its run.")] = 20,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Show why an entry was given up, what it was, and the end of its run's log."""
    from tailrun import Event  # noqa: PLC0415 - `--help` needs none of it

    with connect(url, token) as client:
        letter = client.dead_show(name, logs=tail)
    if as_json:
        print(json.dumps(letter, indent=2))
        return
    facts = [
        ("letter", letter["id"]),
        ("run", letter.get("run_id")),
        ("reason", letter.get("reason")),
        ("error", _said(letter)),
        ("at", letter.get("at")),
        ("raw", letter.get("raw")),
    ]
    fields([(fact, str(value)) for fact, value in facts if value])
    if letter["logs"]:
        print()
        printer = renderer()
        for body in letter["logs"]:
            printer.show(Event.of(body))


@app.command()
def retry(
    names: Names = None,
    *,
    everything: All = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Make a new run like each dead one, and drop its letter. Prints the new runs' ids."""
    _some_or_all(names, everything=everything)
    with connect(url, token) as client:
        run_ids = None if everything else [_run_of(client, name) for name in names or ()]
        done = _retry(client, run_ids)
    if as_json:
        print(json.dumps(done, indent=2))
    for item in done["items"] if not as_json else ():
        print(item["retried_as"])
    for refusal in done["refused"]:
        print(one_line(f"tailrun: {refusal['run_id']}: {refusal['message']}"), file=sys.stderr)
    if done["refused"]:
        raise typer.Exit(1)


def _retry(client: Client, run_ids: list[str] | None) -> dict[str, Any]:
    """Ask until none is left, or no more can be made just now."""
    items: list[dict[str, Any]] = []
    refused: dict[str, dict[str, Any]] = {}
    while True:
        done = client.dead_retry_many(run_ids)
        items += done["items"]
        refused |= {one["run_id"]: one for one in done["refused"]}
        if not done["left"] or not done["items"]:
            break
        if run_ids is not None:
            settled = {item["run_id"] for item in items} | refused.keys()
            run_ids = [run_id for run_id in run_ids if run_id not in settled]
    return {"items": items, "refused": list(refused.values()), "left": done["left"]}


def _run_of(client: Client, name: str) -> str:
    """Return the run of a letter's id; a run's own id may be shortened, as everywhere."""
    from tailrun import NotFound  # noqa: PLC0415 - as above

    try:
        found = client.dead_show(name, logs=0).get("run_id")
    except NotFound:
        return resolve(client, name)
    if not found:
        raise CliError(f"{name} was no entry of a run: there is nothing to retry; drop it")
    return str(found)


@app.command()
def drop(
    names: Names = None,
    *,
    everything: All = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Drop dead letters, malformed ones by their own id; the runs' records stay."""
    _some_or_all(names, everything=everything)
    with connect(url, token) as client:
        dropped = client.dead_drop_many(None if everything else names)
    if names and not dropped:
        raise CliError(f"There is no dead letter {' or '.join(names)}: see `tailrun dead list`")
    print(json.dumps({"dropped": dropped}) if as_json else f"dropped {dropped}")


def _some_or_all(names: list[str] | None, *, everything: bool) -> None:
    if everything is bool(names):
        raise CliError("Name letters or runs, or say --all", 2)
