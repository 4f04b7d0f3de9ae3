"""`tailrun tasks check`: whether a file declares its task types rightly."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from app.commands.config import settings


def check(
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
