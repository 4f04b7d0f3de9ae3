"""Client commands on runs that exist: logs, ls, show, cancel, retry."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailrun.commands.connection import CliError, Json, RunId, Token, Url, connect, resolve
from tailrun.commands.render import as_json as json_of
from tailrun.commands.render import duration, renderer, size, spent
from tailrun.commands.tables import STATUS_STYLES, described, fields, table

if TYPE_CHECKING:
    from tailrun import Client, Event
    from tailrun.commands.follow import FollowView

_LEVELS = ("debug", "info", "warning", "error")
_STREAMS = ("stdout", "stderr", "system", "model", "reasoning")
_TAIL = 1000
"""Events that the API gives with a run at once."""


def logs(
    run: RunId,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print lines as they come, to the end.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", metavar="N", min=0, help="Only the last N lines.")
    ] = None,
    level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="At least debug, info, warning or error.")
    ] = None,
    stream: Annotated[
        str | None, typer.Option(metavar="STREAM", help="Only stdout, stderr, system, model or reasoning.")
    ] = None,
    grep: Annotated[
        str | None, typer.Option("--grep", metavar="TEXT", help="Only lines that hold this.")
    ] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="Print each line's time.")] = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Print a run's lines; with -f until it ends (the exit code is then the run's)."""
    from tailrun.commands.follow import FollowView  # noqa: PLC0415 - `--help` needs none of it
    from tailrun.commands.follow import follow as follow_run  # noqa: PLC0415

    _one_of("--level", level, _LEVELS)
    _one_of("--stream", stream, _STREAMS)
    if follow and grep is not None:
        raise CliError("--grep works without -f: tailrun logs --grep TEXT RUN", 2)
    with connect(url, token) as client:
        run_id = resolve(client, run)
        if follow:
            view = FollowView(as_json, timestamps, tail=tail, level=level, stream=stream)
            raise typer.Exit(follow_run(client, run_id, view))
        _print_logs(client, run_id, FollowView(as_json, timestamps, level=level, stream=stream), grep, tail)


def tail(
    run: Annotated[
        str,
        typer.Argument(metavar="[RUN]", help="Its id, its first characters, or `last`.", show_default=False),
    ] = "last",
    *,
    lines: Annotated[
        int | None, typer.Option("--tail", "-n", metavar="N", min=0, help="Begin with the last N lines.")
    ] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="Print each line's time.")] = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Follow a run to its end, the last one if none is named: `logs -f`. The exit code is the run's."""
    logs(run, follow=True, tail=lines, timestamps=timestamps, as_json=as_json, url=url, token=token)


def _one_of(option: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise CliError(f"{option} is one of {', '.join(allowed)}, not {value!r}", 2)


def _print_logs(client: Client, run_id: str, view: FollowView, grep: str | None, tail: int | None) -> None:
    printer = renderer(timestamps=view.timestamps)
    filters = {"level": view.level, "stream": view.stream, "q": grep}
    events: Iterable[Event] = _pages(client, run_id, filters)
    if tail is not None:
        events = (
            deque(events, maxlen=tail)
            if any(filters.values()) or tail > _TAIL
            else _last(client, run_id, tail)
        )
    for event in events:
        if view.as_json:
            print(json_of(event))
        else:
            printer.show(event)


def _pages(client: Client, run_id: str, filters: dict[str, str | None]) -> Iterator[Event]:
    after: int | None = 0
    while after is not None:
        events, after = client.logs(
            run_id, after=after, level=filters["level"], stream=filters["stream"], q=filters["q"]
        )
        if not events:
            return
        yield from events


def _last(client: Client, run_id: str, tail: int) -> list[Event]:
    from tailrun import Event  # noqa: PLC0415 - as above

    return [Event.of(body) for body in client.get(run_id, logs=tail)["logs"]]


def ls(
    *,
    status: Annotated[str | None, typer.Option(metavar="STATUS", help="Only runs in this state.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="At most so many.")] = 20,
    everyone: Annotated[bool, typer.Option("--all", help="All users' runs; needs an admin's token.")] = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List runs, newest first."""
    if status is not None:
        _one_of("STATUS", status, tuple(STATUS_STYLES))
    with connect(url, token) as client:
        page = client.list(status=status, limit=limit, all_users=everyone)
    if as_json:
        print(json.dumps(page, indent=2))
        return
    rows = [_row(item) for item in page["items"]]
    table(("RUN", "STATUS", "KIND", "CREATED", "TOOK", "EXIT", "LINES", "LABELS"), rows)


def show(run: RunId, *, as_json: Json = False, url: Url = None, token: Token = None) -> None:
    """Show a run, its steps and its files."""
    with connect(url, token) as client:
        run_id = resolve(client, run)
        body = client.get(run_id)
        body["steps"] = client.steps(run_id)
        body["files"] = client.files(run_id)
    if as_json:
        print(json.dumps(body, indent=2))
        return
    fields(_facts(body))
    if body["steps"]:
        print()
        rows = [
            (step["id"], step["tool"], step["status"], _took(step), _or_dash(step["exit_code"]))
            for step in body["steps"]
        ]
        table(("STEP", "TOOL", "STATUS", "TOOK", "EXIT"), rows)
    if body["files"]:
        print()
        table(("FILE", "SIZE"), [(file["path"], size(file["size"])) for file in body["files"]])


def cancel(run: RunId, *, as_json: Json = False, url: Url = None, token: Token = None) -> None:
    """Ask for the end of a run. Of a finished one this changes nothing."""
    with connect(url, token) as client:
        body = client.cancel(resolve(client, run))
    if as_json:
        print(json.dumps(body, indent=2))
    elif body["status"] in {"succeeded", "failed", "cancelled", "timed_out"}:
        print(f"{body['run_id']} is {body['status']}")
    else:
        print(f"{body['run_id']} is {body['status']} and asked to stop")


def retry(
    run: RunId,
    *,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Print the new run's lines.")] = True,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Make a new run like a finished one, and follow it."""
    from tailrun.commands.follow import FollowView  # noqa: PLC0415 - as above
    from tailrun.commands.follow import follow as follow_run  # noqa: PLC0415

    with connect(url, token) as client:
        made = client.retry(resolve(client, run))
        if not follow:
            print(json.dumps(made, indent=2) if as_json else made["run_id"])
            return
        if not as_json:
            print(f"run {made['run_id']}", file=sys.stderr)
        raise typer.Exit(follow_run(client, made["run_id"], FollowView(as_json)))


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    labels = " ".join(f"{name}={value}" for name, value in run["labels"].items())
    exit_code, lines = _or_dash(run["exit_code"]), str(run["log_lines"])
    return (
        run["run_id"],
        run["status"],
        run["kind"],
        _ago(run["created_at"]),
        _took(run),
        exit_code,
        lines,
        labels,
    )


def _facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    error = run["error"]
    found = [
        ("run", run["run_id"]),
        ("status", run["status"]),
        ("error", f"{error['code']}: {error['message']}" if error else None),
        ("exit code", run["exit_code"]),
        ("kind", run["kind"]),
        ("what", described(run["spec"]) if run.get("spec") else None),
        (
            "planner",
            "smoke (the prompt was not carried out)" if run["planner"] == "smoke" else run["planner"],
        ),
        ("waits for", run.get("waiting_for")),
        ("result", _result(run.get("result"))),
        ("spent", spent(run["usage"]["tokens"], run["usage"]["cost_usd"]) if run.get("usage") else None),
        ("attempt", f"{run['attempt']} ({run['retries']} retries, {run['redeliveries']} redeliveries)"),
        ("created", _ago(run["created_at"])),
        ("took", _took(run)),
        ("next attempt", run["next_attempt_at"]),
        ("log", f"{run['log_lines']} lines, {size(run['log_size'])}" + (", cut" if run["truncated"] else "")),
        ("labels", " ".join(f"{name}={value}" for name, value in run["labels"].items()) or None),
        ("files from", run["workspace_from"]),
        ("retry of", run["retry_of"]),
    ]
    return [(name, str(value)) for name, value in found if value is not None]


def _result(result: dict[str, Any] | None) -> str | None:
    """Return an agent's answer: its text, or what its schema made of it."""
    if result is None:
        return None
    return str(result["text"]) if result.keys() == {"text"} else json.dumps(result)


def _took(what: dict[str, Any]) -> str:
    if not what["started_at"]:
        return "-"
    end = datetime.fromisoformat(what["ended_at"]) if what["ended_at"] else datetime.now(UTC)
    return duration(max(0.0, (end - datetime.fromisoformat(what["started_at"])).total_seconds()))


def _ago(ts: str) -> str:
    return duration(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(ts)).total_seconds())) + " ago"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
