"""`tailrun …`: the client's commands, and those of a service that is installed beside it.

Here commands get their names; each lives in a module of its own and imports what is heavy only
when it is called, so that `tailrun --help` and completion answer at once. A package that brings
more commands names a function in the entry point group `tailrun.commands`; it gets `app`.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import typer

from tailrun import VERSION
from tailrun.ansi import harmless
from tailrun.commands import admin, dead, files, run, runs, schedules, tasks
from tailrun.commands.connection import CliError

app = typer.Typer(
    name="tailrun",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RUNS, LOOK, SERVE = "Runs", "Queue and access", "Processes"


def _print_version(asked: bool) -> None:
    if asked:
        print(f"tailrun {VERSION}")
        raise typer.Exit


@app.callback()
def root(
    *,
    _version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Show the version."
    ),
) -> None:
    """Run it, tail it: agent jobs on your own machines."""


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
app.add_typer(admin.token_app, name="token", rich_help_panel=LOOK)
app.command("env", rich_help_panel=LOOK)(admin.env)


def main() -> None:
    """Be the installed command: with what other packages bring."""
    for point in entry_points(group="tailrun.commands"):
        point.load()(app)
    run_app()


def run_app() -> None:
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
