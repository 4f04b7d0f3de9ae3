"""`tailrun …`: one command for clients and for the processes themselves.

Here commands get their names; each lives in a module of `app.commands` and imports what is heavy
only when it is called, so that `tailrun --help` and completion answer at once.
"""

from __future__ import annotations

import sys

import typer

from app.ansi import harmless
from app.commands import (
    admin,
    dead,
    demo,
    files,
    processes,
    redis,
    run,
    runs,
    schedules,
    settings,
    tasks,
)
from app.commands.config import CliError

app = typer.Typer(
    name="tailrun",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RUNS, LOOK, SERVE = "Runs", "Queue and access", "Processes"

app.callback()(settings.root)
app.command("run", cls=run.DashedCommand, rich_help_panel=RUNS)(run.run)
app.command("logs", rich_help_panel=RUNS)(runs.logs)
app.command("ls", rich_help_panel=RUNS)(runs.ls)
app.command("show", rich_help_panel=RUNS)(runs.show)
app.command("cancel", rich_help_panel=RUNS)(runs.cancel)
app.command("retry", rich_help_panel=RUNS)(runs.retry)
app.add_typer(files.app, name="files", rich_help_panel=RUNS)
app.add_typer(tasks.app, name="tasks", rich_help_panel=RUNS)

app.command("queue", rich_help_panel=LOOK)(admin.queue)
app.add_typer(dead.app, name="dead", rich_help_panel=LOOK)
app.add_typer(schedules.app, name="schedule", rich_help_panel=LOOK)
app.command(
    "redis",
    rich_help_panel=LOOK,
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
)(redis.redis)
app.add_typer(admin.token_app, name="token", rich_help_panel=LOOK)
app.command("env", rich_help_panel=LOOK)(admin.env)
app.command("config", rich_help_panel=LOOK)(settings.config)

app.command("up", rich_help_panel=SERVE)(processes.up)
app.command("down", rich_help_panel=SERVE)(processes.down)
app.command("demo", rich_help_panel=SERVE)(demo.demo)
app.command("api", rich_help_panel=SERVE)(processes.api)
app.command("worker", rich_help_panel=SERVE)(processes.worker)
app.command("migrate", rich_help_panel=SERVE)(processes.migrate)
app.command("reseal", rich_help_panel=SERVE)(processes.reseal)
app.command("openapi", rich_help_panel=SERVE)(processes.openapi)


def main() -> None:
    """Run a command; a refusal is one line on stderr and an exit code."""
    try:
        app(prog_name="tailrun")
    except CliError as error:
        _fail(str(error), error.code)
    except Exception as error:
        message = _said_by_client(error)
        if message is None:
            raise
        _fail(message, 1)


def _said_by_client(error: Exception) -> str | None:
    """Return what the client package has to say; it is imported only where it is used."""
    client = sys.modules.get("tailrun.errors")
    if client is None or not isinstance(error, client.TailrunError):
        return None
    hint = ". Is it running? `tailrun up` starts one" if isinstance(error, client.Unreachable) else ""
    return f"{error}{hint}"


def _fail(message: str, code: int) -> None:
    print(f"tailrun: {harmless(message, colours=False)}", file=sys.stderr)
    sys.exit(code)
