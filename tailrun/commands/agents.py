"""What people say to agents: what they may do (options of `run`), decisions about steps, messages."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from tailrun.ansi import harmless
from tailrun.commands.connection import CliError, Json, RunId, Token, Url, connect, resolve
from tailrun.commands.tables import table

if TYPE_CHECKING:
    from tailrun import Client

Answers = Literal["ask", "yes", "tell"]
"""How an agent's questions are met while its run is followed: they are put to the person at the terminal,
approved, or it is said how to answer them."""

_PANEL = "Agent"
Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="The language model.", rich_help_panel=_PANEL)
]
Instructions = Annotated[
    Path | None,
    typer.Option("--instructions", metavar="FILE", help="What it is told besides.", rich_help_panel=_PANEL),
]
Budget = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="LIMIT",
        help="What it may spend: 0.50 (US dollars), tokens=N, calls=N, tool_calls=N; may be repeated.",
        rich_help_panel=_PANEL,
    ),
]
Tools = Annotated[
    str | None,
    typer.Option("--tools", metavar="A,B", help="Tools that it may call; none: ''.", rich_help_panel=_PANEL),
]
Approve = Annotated[
    str | None,
    typer.Option("--approve", metavar="A,B", help="Tools that ask you each time.", rich_help_panel=_PANEL),
]
Schema = Annotated[
    Path | None,
    typer.Option("--schema", metavar="FILE", help="JSON Schema of the result.", rich_help_panel=_PANEL),
]
Continue = Annotated[
    str | None,
    typer.Option(
        "--continue", metavar="RUN", help="Go on from an ended run's words.", rich_help_panel=_PANEL
    ),
]
Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Approve all that it asks for.", rich_help_panel=_PANEL)
]
Step = Annotated[
    str | None,
    typer.Argument(metavar="[STEP]", help="Which step; left out: the one that waits.", show_default=False),
]
Every = Annotated[bool, typer.Option("--all", help="All that wait of this run.")]
Note = Annotated[str | None, typer.Option("--note", metavar="TEXT", help="Why; the agent is told.")]

_BUDGETS = ("usd", "tokens", "calls", "tool_calls")
_MOST_SHOWN = 2_000


def agent_of(
    *,
    model: str | None,
    instructions: Path | None,
    budget: list[str] | None,
    tools: str | None,
    approve: str | None,
    schema: Path | None,
    yes: bool,
) -> dict[str, Any]:
    """Return the part of the request that is the agent's; empty: nothing was asked of it."""
    if yes and approve is not None:
        raise CliError("--yes approves what --approve would ask for: give one of them", 2)
    given = {
        "model": model,
        "instructions": None if instructions is None else _text(instructions),
        "budget": None if budget is None else dict(map(_limit, budget)),
        "tools": None if tools is None else _names(tools),
        "approve": [] if yes else None if approve is None else _names(approve),
        "result_schema": None if schema is None else _object(schema),
    }
    return {name: value for name, value in given.items() if value is not None}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _limit(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    name, value = (name, value) if equals else ("usd", text.removeprefix("$"))
    try:
        number = float(value) if name == "usd" else int(value)
    except ValueError:
        number = -1
    if name not in _BUDGETS or not 0 <= number < float("inf"):
        raise CliError(
            f"--budget takes 0.50 (US dollars), tokens=N, calls=N or tool_calls=N, not {text!r}", 2
        )
    return name, number


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(file))
    except ValueError as error:
        raise CliError(f"{file} is not JSON: {error}", 2) from error
    if not isinstance(found, dict):
        raise CliError(f"{file} holds no JSON object", 2)
    return cast("dict[str, Any]", found)


def approvals(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Of one run, decided or not.", show_default=False)
    ] = None,
    *,
    everyone: Annotated[bool, typer.Option("--all", help="All users'; needs an admin's token.")] = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List the steps that wait for your decision."""
    with connect(url, token) as client:
        run_id = None if run is None else resolve(client, run)
        found = client.approvals(run_id, all_users=everyone)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    rows = [
        (
            one["run_id"],
            one["step"],
            one["decision"] or "open",
            one["rule"],
            _shown(one),
            one["expires_at"] or "-",
        )
        for one in found
    ]
    table(("RUN", "STEP", "DECISION", "RULE", "WHAT", "EXPIRES"), rows)


def approve(
    run: RunId,
    step: Step = None,
    *,
    note: Note = None,
    every: Every = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Let a step of an agent run that waits for it."""
    with connect(url, token) as client:
        _decide(client, resolve(client, run), step, every=every, approve=True, note=note, as_json=as_json)


def deny(
    run: RunId,
    step: Step = None,
    *,
    note: Note = None,
    every: Every = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Keep a step of an agent from running; the agent is told, and continues."""
    with connect(url, token) as client:
        _decide(client, resolve(client, run), step, every=every, approve=False, note=note, as_json=as_json)


def say(
    run: RunId,
    text: Annotated[
        str, typer.Argument(metavar='"TEXT"', help="What to say, or the answer to its question.")
    ],
    *,
    interrupt: Annotated[bool, typer.Option("--interrupt", help="Deny what waits for approval.")] = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Write to an agent that works, or answer its question."""
    with connect(url, token) as client:
        sent = client.say(resolve(client, run), text, interrupt=interrupt)
    print(json.dumps(sent, indent=2) if as_json else f"message {sent['k']} to {sent['run_id']}")


def _decide(
    client: Client,
    run_id: str,
    step: str | None,
    *,
    every: bool,
    approve: bool,
    note: str | None,
    as_json: bool,
) -> None:
    asked = client.approvals(run_id)
    waiting = [one for one in asked if one["decision"] is None]
    chosen = [one for one in waiting if step in (None, one["step"])]
    if not chosen:
        decided = next((one for one in asked if one["step"] == step), None)
        what = f"step {step} does not wait" if step else "no step waits"
        known = f", it is {decided['decision']}" if decided else ""
        raise CliError(f"{run_id}: {what} for a decision{known}: see `tailrun approvals {run_id[:8]}`")
    if len(chosen) > 1 and not every:
        names = ", ".join(one["step"] for one in chosen)
        raise CliError(f"{run_id}: {names} wait for a decision: name one of them, or give --all", 2)
    made = [
        client.decide(run_id, one["step"], approve=approve, args_sha256=one["args_sha256"], note=note)
        for one in chosen
    ]
    if as_json:
        print(json.dumps(made, indent=2))
        return
    for one in made:
        print(f"{one['step']} {one['decision']}: {_shown(one)}")


def _shown(asked: dict[str, Any]) -> str:
    """Say in one line what a step would do."""
    args = asked["args"] or {}
    what = next((args[name] for name in ("command", "source", "path") if name in args), None)
    text = what if isinstance(what, str) else json.dumps(args, ensure_ascii=False)
    return f"{asked['tool'] or 'step'}: {text}"[:_MOST_SHOWN]


class Asker:
    """Puts a waiting run's questions to the person at the terminal, while it is followed."""

    def __init__(self, client: Client, note: Callable[[str, str], None], answers: Answers) -> None:
        self._client, self._note = client, note
        asks = answers == "ask" and sys.stdin.isatty() and sys.stderr.isatty()
        self._answers: Answers = answers if asks or answers == "yes" else "tell"

    def settle(self, run_id: str) -> None:
        """Deal with what the run waits for, if it still does."""
        run = self._client.get(run_id)
        if run["status"] != "waiting":
            return
        if run.get("waiting_for") == "answer":
            self._ask_for_words(run_id)
            return
        for asked in self._client.approvals(run_id):
            if asked["decision"] is None:
                self._settle(asked)

    def _settle(self, asked: dict[str, Any]) -> None:
        run_id, step = asked["run_id"][:8], asked["step"]
        for line in _shown(asked).splitlines():
            self._note(f"  {line}", "bold")
        if self._answers == "tell":
            self._note(f"  approve it:  tailrun approve {run_id} {step}", "dim")
            self._note(f"  deny it:     tailrun deny {run_id} {step}", "dim")
            return
        yes = self._answers == "yes"
        if not yes:
            said = _line(f"Run {step}? [y/N] ")
            if said is None:
                return
            yes = said.strip().lower() in {"y", "yes"}
        self._decide(asked, approve=yes)

    def _decide(self, asked: dict[str, Any], *, approve: bool) -> None:
        from tailrun import Conflict  # noqa: PLC0415 - loads the client

        try:
            self._client.decide(
                asked["run_id"], asked["step"], approve=approve, args_sha256=asked["args_sha256"]
            )
        except Conflict as error:  # another one was faster, or it took too long
            self._note(f"! {error}", "warning")

    def _ask_for_words(self, run_id: str) -> None:
        if self._answers == "ask":
            said = _line("Your answer: ")
            if said and said.strip():
                self._client.say(run_id, said.strip())
                return
        self._note(f'  answer it:  tailrun say {run_id[:8]} "…"', "dim")


def _line(question: str) -> str | None:
    """Ask at the terminal; None at the end of its input."""
    print(harmless(question, colours=False), end="", file=sys.stderr, flush=True)
    said = sys.stdin.readline()
    return said or None
