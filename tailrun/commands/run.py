"""`tailrun run`: make a run of a prompt, a plan or a command, bring its files along, follow it."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand

from tailrun.commands.agents import (
    Approve,
    Budget,
    Continue,
    Instructions,
    Model,
    Schema,
    Tools,
    Yes,
    agent_of,
)
from tailrun.commands.connection import CliError, Json, Token, Url, connect, resolve
from tailrun.commands.tasks import files_of, task_of
from tailrun.commands.uploads import Upload, submit, uploads_of

if TYPE_CHECKING:
    from tailrun import Client


def finite(value: float | None) -> float | None:
    """Hold an option to numbers that there are: no `nan`, no `inf`."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number of seconds")
    return value


Prompt = Annotated[
    list[str] | None,
    typer.Argument(
        metavar='"PROMPT" | -- COMMAND…', help="What to do, or -- and a command.", show_default=False
    ),
]
Steps = Annotated[
    str | None, typer.Option("--steps", metavar="FILE", help="A plan in YAML or JSON; - reads stdin.")
]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", metavar="NAME=VALUE", help="Environment of the programs."),
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", "-l", metavar="NAME=VALUE", help="A label of your own.")
]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", callback=finite, help="Longest time an attempt may take."),
]
Attempts = Annotated[int | None, typer.Option(metavar="N", help="1 + retries after a failure.")]
RetryOn = Annotated[
    list[str] | None,
    typer.Option("--retry-on", metavar="CODE", help="Try again after this error only; may be repeated."),
]
Task = Annotated[
    str | None,
    typer.Option("--type", metavar="TYPE[/COMMAND]", help="A task of this type: see `tailrun tasks`."),
]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="NAME=VALUE", help="With --type: a parameter."),
]
Project = Annotated[str | None, typer.Option(metavar="ID", help="With --type: its project.")]
With = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="PATH", help="A file or folder to upload first; may be repeated."),
]
From = Annotated[
    str | None, typer.Option("--from", metavar="RUN", help="Start with a copy of that run's files.")
]
High = Annotated[bool, typer.Option("--high", help="To the front of the queue: taken next.")]


class DashedCommand(TyperCommand):
    """Keeps what comes after `--` apart: it is a command, and a prompt is not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the words after the first `--` into the context's `meta`."""
        if "--" in args:
            cut = args.index("--")
            ctx.meta["argv"] = args[cut + 1 :]
            args = args[:cut]
        return super().parse_args(ctx, args)


def run(
    ctx: typer.Context,
    prompt: Prompt = None,
    *,
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
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="Start not before 2026-11-20T18:00, here or with a zone."),
    ] = None,
    high: High = False,
    planner: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="With a prompt: agent (a model), or smoke (a small plan, not the prompt)."
        ),
    ] = None,
    model: Model = None,
    instructions: Instructions = None,
    budget: Budget = None,
    tools: Tools = None,
    approve: Approve = None,
    schema: Schema = None,
    continue_: Continue = None,
    yes: Yes = False,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Tell this address when the run has ended.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Print the run's lines as they come.")
    ] = True,
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="Print each line's time.")] = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Run a prompt, a plan (--steps), a task (--type), or a command (after --), and follow it.

    The exit code is the run's: 0, the program's own code, 130 cancelled, 124 timed out, or 1.
    Files named in a command are uploaded before it starts.
    """
    asked = Asked(ctx.meta.get("argv"), type_, pairs(param, "--param") or {}, project, with_ or [], from_)
    body = what(prompt or [], asked.argv, steps, type_)
    given = {
        "env": pairs(env, "--env"),
        "labels": pairs(label, "--label"),
        "timeout_s": timeout,
        "max_attempts": attempts,
        "retry_on": retry_on,
        "run_at": None if at is None else moment(at),
        "priority": "high" if high else None,
        "planner": planner,
        "webhook_url": webhook,
    }
    body |= {name: value for name, value in given.items() if value is not None}
    agent = agent_of(
        model=model,
        instructions=instructions,
        budget=budget,
        tools=tools,
        approve=approve,
        schema=schema,
        yes=yes,
    )
    if agent:
        body["agent"] = agent
    asked.check()
    with connect(url, token) as client:
        uploads = asked.complete(client, body)
        if continue_ is not None:
            body["continue_of"] = resolve(client, continue_)
        made = submit(client, body, uploads, quiet=as_json)
        if not follow:
            print(json.dumps(made, indent=2) if as_json else made["run_id"])
            return
        raise typer.Exit(_follow(client, made, as_json=as_json, timestamps=timestamps, yes=yes))


@dataclass(frozen=True, slots=True)
class Asked:
    """The task of a run and its first files, as the command line names them."""

    argv: list[str] | None
    task: str | None
    params: dict[str, str]
    project: str | None
    brought: list[Path]
    source: str | None

    def check(self) -> None:
        """Refuse what goes with a task only."""
        if self.task is None and (self.params or self.project):
            raise CliError("--param and --project go with --type", 2)

    def complete(self, client: Client, body: dict[str, Any]) -> list[Upload]:
        """Add to the request what only the server knows; return the files that go with it."""
        if self.task is not None:
            body |= task_of(client, self.task, self.params, self.project)
        named = files_of(client, self.task, self.params) if self.task is not None else self.argv or []
        uploads = uploads_of(named, self.brought)
        if self.source is not None:
            body["workspace_from"] = resolve(client, self.source)
        return uploads


def _follow(client: Client, made: dict[str, Any], *, as_json: bool, timestamps: bool, yes: bool) -> int:
    from tailrun.commands.follow import FollowView, follow  # noqa: PLC0415 - not with --no-follow

    view = FollowView(as_json=as_json, timestamps=timestamps, answers="yes" if yes else "ask", fold=True)
    code = follow(client, made["run_id"], view)
    if made["kind"] == "prompt" and client.get(made["run_id"])["planner"] == "smoke":
        print(
            "No model carries out a prompt here, so it was not carried out (planner: smoke).\n"
            "Send steps or a command instead: tailrun run -- echo hello",
            file=sys.stderr,
        )
    return code


def what(
    prompt: list[str], argv: list[str] | None, steps: str | None, task: str | None = None
) -> dict[str, Any]:
    """Return the part of the request that describes the work; `argv` is what came after `--`.

    A task's part needs the server's word on its parameters: `tailrun.commands.tasks.task_of`.
    """
    given = [bool(prompt), argv is not None, steps is not None, task is not None]
    if sum(given) != 1:
        raise CliError('Give one of: "a prompt in quotes", --steps FILE, --type TYPE, or -- and a command', 2)
    if task is not None:
        return {}
    if argv is not None:
        if not argv:
            raise CliError("After -- comes a command: tailrun run -- python job.py", 2)
        return {"argv": argv}
    if steps is not None:
        return read_plan(steps)
    if len(prompt) > 1:
        words = " ".join(prompt)
        raise CliError(f'Put a prompt in quotes ("{words}"), or -- before a command (-- {words})', 2)
    return {"prompt": _sentence(prompt[0])}


_SUFFIX = 6
"""From this many characters on the text behind a dot is no suffix of a file's name."""


def _sentence(prompt: str) -> str:
    """Return the prompt; a file's name is none, and what to do with that file is not ours to guess."""
    suffix = PurePath(prompt).suffix[1:]
    like_a_file = "/" in prompt or (suffix.isalnum() and suffix[0].isalpha() and len(suffix) < _SUFFIX)
    one_word = prompt.split() == [prompt]
    if os.path.exists(prompt) or (one_word and like_a_file):  # noqa: PTH110 - a prompt may be no path at all
        name = shlex.quote(prompt)
        raise CliError(
            f"{prompt!r} reads like a file, not like a prompt: --steps {name} runs it as a plan, "
            f"-- {name} as a program",
            2,
        )
    return prompt


def read_plan(file: str) -> dict[str, Any]:
    """Read a plan in JSON or YAML: a list of steps, or an object with `steps` and other fields of a run."""
    raw = sys.stdin.buffer.read() if file == "-" else _read(file)
    plan = _parsed(file, raw)
    body = {"steps": plan} if isinstance(plan, list) else plan
    if not isinstance(body, dict) or "steps" not in body:
        raise CliError(f"{file} holds no plan: a list of steps, or an object with `steps`", 2)
    try:
        body = json.loads(json.dumps(body, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise CliError(f"{file} holds what JSON has not: {error}", 2) from error
    return {name: value for name, value in cast("dict[str, Any]", body).items() if name != "start"}


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise CliError(f"{file}: {error.strerror}", 2) from error


def _parsed(file: str, raw: bytes) -> Any:
    """Parse JSON as JSON; only what is none is read as YAML, which is no superset of it (tabs, numbers)."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CliError(f"{file} is neither JSON nor YAML: it is not UTF-8 ({error.reason})", 2) from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if file.lower().endswith(".json") or (text.lstrip()[:1] == "{" and "\t" in text):
            raise CliError(f"{file} is not JSON: {error}", 2) from error
    import yaml  # noqa: PLC0415 - only for plans

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CliError(f"{file} is not YAML: {error}", 2) from error


def moment(text: str) -> str:
    """Read a time; one without a zone is this machine's."""
    try:
        return datetime.fromisoformat(text).astimezone().isoformat()
    except (ValueError, OverflowError) as error:
        raise CliError(f"--at takes a time such as 2026-11-20T18:00, not {text!r}", 2) from error


def pairs(given: list[str] | None, option: str) -> dict[str, str] | None:
    """Read NAME=VALUE options."""
    if not given:
        return None
    pairs: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise CliError(f"{option} takes NAME=VALUE, not {each!r}", 2)
        pairs[name] = value
    return pairs
