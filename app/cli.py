"""The service's own commands (`up`, `api`, `worker`, …), which join those of the client."""

from __future__ import annotations

from functools import cache

import typer

from app.commands import config, demo, models, processes, redis
from tailrun import cli
from tailrun.cli import LOOK, SERVE
from tailrun.commands.tasks import app as tasks_app


def register(app: typer.Typer) -> None:
    """Add the service's commands to `tailrun`; the entry point `tailrun.commands` calls it."""
    redis_words = {"allow_interspersed_args": False, "ignore_unknown_options": True}
    app.command("redis", rich_help_panel=LOOK, context_settings=redis_words)(redis.redis)
    app.command("config", rich_help_panel=LOOK)(config.config)
    app.command("models", rich_help_panel=LOOK)(models.models)
    tasks_app.command("check")(config.check_tasks)
    app.command("up", rich_help_panel=SERVE)(processes.up)
    app.command("down", rich_help_panel=SERVE)(processes.down)
    app.command("demo", rich_help_panel=SERVE)(demo.demo)
    app.command("api", rich_help_panel=SERVE)(processes.api)
    app.command("worker", rich_help_panel=SERVE)(processes.worker)
    app.command("migrate", rich_help_panel=SERVE)(processes.migrate)
    app.command("reseal", rich_help_panel=SERVE)(processes.reseal)
    app.command("openapi", rich_help_panel=SERVE)(processes.openapi)


@cache
def command_line() -> typer.Typer:
    """Return `tailrun` with the commands of this checkout."""
    register(cli.app)
    return cli.app


def main() -> None:
    """Run it."""
    command_line()
    cli.run_app()
