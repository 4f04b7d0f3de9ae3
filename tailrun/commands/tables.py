"""Tables and facts for people: aligned and coloured on a terminal, tab-separated in a pipe."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from tailrun.ansi import one_line

STATUS_STYLES = {
    "created": "dim",
    "queued": "cyan",
    "running": "bold cyan",
    "waiting": "cyan",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "timed_out": "red",
}


def described(spec: dict[str, Any]) -> str:
    """Say in a few words what a run does; also of a kind that this release has not heard of."""
    match spec:
        case {"argv": list() as argv}:
            return shlex.join(map(str, argv))
        case {"prompt": str() as prompt}:
            return next(iter(prompt.strip().splitlines()), "")
        case {"steps": list() as steps}:
            return f"{len(steps)} steps"
        case {"type": str() as kind}:
            name = f"{kind}/{spec['command']}" if spec.get("command") else kind
            params = (f"{param}={value}" for param, value in (spec.get("params") or {}).items())
            return " ".join([name, *params])
        case _:
            return json.dumps(spec) if spec else "-"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header; into a pipe without the header, one line a row."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(map(one_line, row)))
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = Table(box=None, header_style="dim", pad_edge=False)
    for name in header:
        drawn.add_column(name, no_wrap=name in {"RUN", "STATUS", "FILE"}, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(one_line(cell), STATUS_STYLES.get(cell, "")) for cell in row))
    Console().print(drawn)


def fields(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair a line."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {one_line(value)}")
