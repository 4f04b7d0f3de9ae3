"""`tailrun tasks`: which task types there are, and their parameters."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import typer

from tailrun.ansi import harmless
from tailrun.commands.connection import CliError, Json, Token, Url, connect
from tailrun.commands.tables import fields

if TYPE_CHECKING:
    from tailrun import Client

app = typer.Typer(help="Show the declared task types.", invoke_without_command=True)


@app.callback()
def show(ctx: typer.Context, as_json: Json = False, url: Url = None, token: Token = None) -> None:
    """Show the declared task types, with their commands and parameters."""
    if ctx.invoked_subcommand is not None:
        return
    with connect(url, token) as client:
        types = client.task_types()
    if as_json:
        print(json.dumps(types, indent=2))
        return
    for each in types:
        for command, about in (each["commands"] or {"": each}).items():
            name = f"{each['type']}/{command}" if command else each["type"]
            print(harmless(f"{name}\n  {about['help'] or each['help']}", colours=False))
            _print_params(about["params"])


def _print_params(params: dict[str, Any]) -> None:
    if params:
        fields([(f"  {name}", _described(param)) for name, param in params.items()])


def _described(param: dict[str, Any]) -> str:
    words = [param["type"], *(["required"] if param["required"] else [])]
    if param["choices"]:
        words.append("one of " + ", ".join(map(str, param["choices"])))
    if param["default"] is not None:
        words.append(f"default {param['default']}")
    return ", ".join(words) + (f": {param['help']}" if param["help"] else "")


def task_of(client: Client, name: str, params: dict[str, str], project: str | None) -> dict[str, Any]:
    """Return the part of a request that names a task; `name` is `type` or `type/command`.

    Values are read by the types of their parameters; what is not declared is left to the
    server, which refuses it by name.
    """
    kind, _, command = name.partition("/")
    declared = _declared(client, kind, command)
    read = {param: _read(param, text, declared.get(param, {})) for param, text in params.items()}
    body = {"type": kind, "command": command or None, "project": project}
    return {key: value for key, value in body.items() if value is not None} | {"params": read}


def files_of(client: Client, name: str, params: dict[str, str]) -> list[str]:
    """Return the values that name files: those here are brought along."""
    kind, _, command = name.partition("/")
    declared = _declared(client, kind, command)
    return [text for param, text in params.items() if declared.get(param, {}).get("type") == "file"]


def _declared(client: Client, kind: str, command: str) -> dict[str, Any]:
    found = next((each for each in client.task_types() if each["type"] == kind), None)
    if found is None:
        return {}
    return found["commands"].get(command, {"params": {}})["params"] if command else found["params"]


def _read(param: str, text: str, declared: dict[str, Any]) -> Any:
    match declared.get("type"):
        case "boolean" if text.lower() in {"true", "false"}:
            return text.lower() == "true"
        case "integer" | "number":
            try:
                number = int(text) if declared["type"] == "integer" else float(text)
            except ValueError:
                number = math.nan
            if not math.isfinite(number):
                raise CliError(f"--param {param} takes a number, not {text!r}", 2)
            return number
        case _:
            return text
