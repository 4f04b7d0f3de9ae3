"""`tailrun …`: the client's commands, and those of a service that is installed beside it.

Here commands get their names; each lives in a module of its own and imports what is heavy only
when it is called, so that `tailrun --help` and completion answer at once. A package that brings
more commands names a function in the entry point group `tailrun.commands`; it gets `app`.
"""

from __future__ import annotations

from importlib.metadata import entry_points

import typer

from tailrun import VERSION
from tailrun.commands import admin, agents, dead, files, recorded, run, runs, schedules, tasks
from tailrun.commands.entry import call

app = typer.Typer(
    name="tailrun",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RUNS, AGENTS, LOOK, SERVE = "Runs", "Agents", "Queue and access", "Processes"


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
app.command("tail", rich_help_panel=RUNS)(runs.tail)
app.command("ls", rich_help_panel=RUNS)(runs.ls)
app.command("show", rich_help_panel=RUNS)(runs.show)
app.command("cancel", rich_help_panel=RUNS)(runs.cancel)
app.command("retry", rich_help_panel=RUNS)(runs.retry)
app.command("say", rich_help_panel=AGENTS)(agents.say)
app.command("approvals", rich_help_panel=AGENTS)(agents.approvals)
app.command("approve", rich_help_panel=AGENTS)(agents.approve)
app.command("deny", rich_help_panel=AGENTS)(agents.deny)
app.command("calls", rich_help_panel=AGENTS)(recorded.calls)
app.command("transcript", rich_help_panel=AGENTS)(recorded.transcript)
app.command("replay", rich_help_panel=AGENTS)(recorded.replay)
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
    """Run a command; see `tailrun.commands.entry` for how its errors are shown."""
    call(lambda: app(prog_name="tailrun"))
