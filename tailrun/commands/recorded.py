"""What was recorded of an agent's run: calls of its model, and its transcript."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailrun.ansi import harmless
from tailrun.commands.connection import CliError, Json, RunId, Token, Url, connect, resolve
from tailrun.commands.run import pairs
from tailrun.commands.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tailrun import Client

_PAGE = 200


def calls(
    run: RunId,
    number: Annotated[
        int | None, typer.Argument(metavar="[N]", help="One call, with what was asked.", show_default=False)
    ] = None,
    *,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List the calls of the model that an agent has made, or show one of them."""
    with connect(url, token) as client:
        run_id = resolve(client, run)
        found = list(_all(client, run_id)) if number is None else client.call(run_id, number)
    if as_json:
        print(json.dumps(found, indent=2))
    elif isinstance(found, list):
        table(("N", "STATUS", "MODEL", "IN", "OUT", "USD", "FINISH"), [_row(call) for call in found])
    else:
        for line in _detail(found):
            print(harmless(line, colours=False))


def transcript(run: RunId, *, url: Url = None, token: Token = None) -> None:
    """Print what was recorded of an agent's run: `tailrun transcript RUN > FILE` keeps it."""
    with connect(url, token) as client:
        for piece in client.transcript(resolve(client, run)):
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def replay(
    what: Annotated[
        str, typer.Argument(metavar="RUN|FILE", help="A run that has ended, or a file with a transcript.")
    ],
    *,
    loose: Annotated[
        bool, typer.Option("--loose", help="Go on where a request is not the recorded one.")
    ] = False,
    tools: Annotated[
        str, typer.Option(metavar="HOW", help="real: run the tools; recorded: run nothing.")
    ] = "real",
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Instead of the recorded one.")] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="May be repeated.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the id and leave.")] = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Carry out an agent's run again with its recorded replies: no model is called, nothing is paid."""
    from tailrun.commands.follow import FollowView, follow  # noqa: PLC0415 - `--help` needs none of it

    if tools not in ("real", "recorded"):
        raise CliError(f"--tools is real or recorded, not {tools!r}", 2)
    body: dict[str, Any] = {"strict": not loose, "tools": tools, "env": pairs(env, "--env")}
    with connect(url, token) as client:
        source = Path(what)
        if source.is_file():
            body["transcript"] = _read(source)
        else:
            body["replay_of"] = resolve(client, what)
        run_id = client.create(prompt=prompt, **body)["run_id"]
        if detach:
            print(run_id)
            return
        code = follow(client, run_id, FollowView(as_json=as_json))
    raise typer.Exit(code)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{file} can't be read as a transcript: {error}", 2) from error


def _all(client: Client, run_id: str) -> Iterator[dict[str, Any]]:
    after: int | None = 0
    while after is not None:
        page = client.calls(run_id, after=after, limit=_PAGE)
        yield from page["items"]
        after = page["next"]


def _row(call: dict[str, Any]) -> tuple[str, ...]:
    usage, cost = call["usage"], call["cost_usd"]
    price = "-" if cost is None else f"{cost:.6f}"
    ended = call["finish"] or (call["error"] or {}).get("code") or "-"
    tokens = (str(usage["input"]), str(usage["output"]))
    return (str(call["n"]), call["status"], call["model"], *tokens, price, ended)


def _detail(call: dict[str, Any]) -> Iterator[str]:
    request = call["request"]
    yield "== system"
    yield request["system"]
    if request["continue_of"]:
        yield f"== (the conversation of run {request['continue_of']})"
    for message in request["messages"]:
        of = f" {message['call_id']}" if "call_id" in message else ""
        yield f"== {message['role']}{of}"
        yield from _said(message["content"], message.get("calls") or [])
    yield f"== reply {call['n']}: {call['status']}"
    reply = call["reply"] or {}
    yield from _said(
        reply.get("text", ""), [each | {"arguments": each["raw"]} for each in reply.get("calls", [])]
    )
    if call["error"]:
        yield f"{call['error'].get('code')}: {call['error'].get('message')}"


def _said(text: str, calls: list[dict[str, Any]]) -> Iterator[str]:
    if text:
        yield text
    for call in calls:
        yield f"-> {call['name']} {call['arguments']}"
