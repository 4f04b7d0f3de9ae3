"""Client commands on schedules: create, list, drop."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from tailrun.commands.connection import CliError, Json, Token, Url, connect
from tailrun.commands.run import (
    Asked,
    Attempts,
    DashedCommand,
    Env,
    From,
    High,
    Labels,
    Params,
    Project,
    Prompt,
    RetryOn,
    Steps,
    Task,
    Timeout,
    With,
    pairs,
    what,
)
from tailrun.commands.tables import described, table
from tailrun.commands.uploads import held_files

app = typer.Typer(help="Make runs at the times of a cron expression.", no_args_is_help=True)

_PAGE = 200


@app.command("create", cls=DashedCommand)
def create(
    ctx: typer.Context,
    cron: Annotated[str, typer.Argument(metavar="CRON", help='Such as "30 2 * * MON-FRI".')],
    prompt: Prompt = None,
    *,
    timezone: Annotated[
        str, typer.Option("--timezone", "-z", metavar="ZONE", help="Whose clock: Europe/Zurich, UTC …")
    ] = "UTC",
    steps: Steps = None,
    type_: Task = None,
    param: Params = None,
    project: Project = None,
    with_: With = None,
    from_: From = None,
    env: Env = None,
    label: Labels = None,
    timeout: Timeout = None,
    attempts: Attempts = None,
    retry_on: RetryOn = None,
    high: High = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Make a schedule of a prompt, a plan (--steps), a task (--type), or a command (after --). Prints its id.

    Files named in a command are uploaded now and kept: each of its runs begins with them as they are today.
    """
    asked = Asked(ctx.meta.get("argv"), type_, pairs(param, "--param") or {}, project, with_ or [], from_)
    given = {
        "env": pairs(env, "--env"),
        "labels": pairs(label, "--label"),
        "timeout_s": timeout,
        "max_attempts": attempts,
        "retry_on": retry_on,
        "priority": "high" if high else None,
    }
    body = what(prompt or [], asked.argv, steps, type_)
    body |= {name: value for name, value in given.items() if value is not None}
    asked.check()
    with connect(url, token) as client:
        uploads = asked.complete(client, body)
        if uploads and from_ is not None:
            raise CliError("--from brings that run's files; leave it out, or name no files of this folder", 2)
        if uploads:
            body["workspace_from"] = held_files(client, body, uploads, quiet=as_json)
        made = client.create_schedule(cron=cron, timezone=timezone, run=body)
    print(json.dumps(made, indent=2) if as_json else made["schedule_id"])


@app.command("list")
def list_schedules(
    *,
    everyone: Annotated[bool, typer.Option("--all", "-a", help="All users' schedules; admin only.")] = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List schedules, newest first."""
    items: list[dict[str, Any]] = []
    with connect(url, token) as client:
        page = client.schedules(limit=_PAGE, all_users=everyone)
        items += page["items"]
        while page["next"] is not None:
            page = client.schedules(limit=_PAGE, cursor=page["next"], all_users=everyone)
            items += page["items"]
    if as_json:
        print(json.dumps(items, indent=2))
        return
    table(("SCHEDULE", "CRON", "ZONE", "NEXT", "LAST RUN", "WHAT"), [_row(item) for item in items])


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    last = item["last_error"] or item["last_run_id"] or "-"
    following = item["next_at"] or "never again"
    return (item["schedule_id"], item["cron"], item["timezone"], following, last, described(item["run"]))


@app.command()
def drop(
    schedules: Annotated[list[str], typer.Argument(metavar="SCHEDULE…", help="As `schedule list` shows it.")],
    *,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Delete schedules; the runs that they made stay."""
    from tailrun import NotFound  # noqa: PLC0415 - `--help` needs none of it

    with connect(url, token) as client:
        for schedule_id in schedules:
            try:
                client.delete_schedule(schedule_id)
            except NotFound as error:
                raise CliError(f"There is no schedule {schedule_id}: see `tailrun schedule list`") from error
    print(json.dumps({"dropped": schedules}) if as_json else f"dropped {' '.join(schedules)}")
