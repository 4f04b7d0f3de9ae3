"""`tailrun run`: make a run of a prompt, a plan or a command, bring its files along, follow it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand

from tailrun.commands.connection import CliError, Json, Token, Url, connect, resolve
from tailrun.commands.render import size
from tailrun.commands.tasks import files_of, task_of

if TYPE_CHECKING:
    from tailrun import Client

_SKIPPED = frozenset({".git", ".venv", "__pycache__", "node_modules", ".tailrun"})
_MAX_FILES = 1000


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
Timeout = Annotated[float | None, typer.Option(metavar="SECONDS", help="Longest time an attempt may take.")]
Attempts = Annotated[int | None, typer.Option(metavar="N", help="1 + retries after a failure.")]
RetryOn = Annotated[
    list[str] | None,
    typer.Option("--retry-on", metavar="CODE", help="Try again after this error only; may be repeated."),
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


@dataclass(frozen=True, slots=True)
class Upload:
    """A local file and its path in the run's workspace."""

    source: Path
    path: str


def run(
    ctx: typer.Context,
    prompt: Prompt = None,
    *,
    steps: Steps = None,
    type_: Annotated[
        str | None, typer.Option("--type", metavar="TYPE[/COMMAND]", help="A task; see `tailrun tasks`.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="With --type: one of its parameters."),
    ] = None,
    project: Annotated[str | None, typer.Option(metavar="ID", help="With --type: its project.")] = None,
    with_: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="PATH", help="A file or folder to upload first; may be repeated."),
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="Start with a copy of that run's files.")
    ] = None,
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
    argv: list[str] | None = ctx.meta.get("argv")
    params = pairs(param, "--param") or {}
    body = what(prompt or [], argv, steps, type_)
    if type_ is None and (params or project):
        raise CliError("--param and --project go with --type", 2)
    given = {
        "env": pairs(env, "--env"),
        "labels": pairs(label, "--label"),
        "timeout_s": timeout,
        "max_attempts": attempts,
        "retry_on": retry_on,
        "run_at": None if at is None else moment(at),
        "priority": "high" if high else None,
        "webhook_url": webhook,
    }
    body |= {name: value for name, value in given.items() if value is not None}
    with connect(url, token) as client:
        if type_ is not None:
            body |= task_of(client, type_, params, project)
        named = files_of(client, type_, params) if type_ is not None else argv or []
        uploads = uploads_of(named, with_ or [])
        if from_ is not None:
            body["workspace_from"] = resolve(client, from_)
        made = submit(client, body, uploads, quiet=as_json)
        if not follow:
            print(json.dumps(made, indent=2) if as_json else made["run_id"])
            return
        raise typer.Exit(_follow(client, made, as_json=as_json, timestamps=timestamps))


def submit(client: Client, body: dict[str, Any], uploads: list[Upload], *, quiet: bool) -> dict[str, Any]:
    """Make the run; with files to bring it is held until they are there."""
    made = client.create(**body, start=not uploads)
    run_id = made["run_id"]
    if not quiet:
        print(f"run {run_id}", file=sys.stderr)
    if not uploads:
        return made
    try:
        for upload in uploads:
            stored = client.upload(run_id, upload.path, upload.source)
            if not quiet:
                print(f"uploaded {upload.source} as {upload.path} ({size(stored['size'])})", file=sys.stderr)
    except BaseException:  # a run without its files must not wait without end
        client.cancel(run_id)
        raise
    return client.start(run_id)


def _follow(client: Client, made: dict[str, Any], *, as_json: bool, timestamps: bool) -> int:
    from tailrun.commands.follow import View, follow  # noqa: PLC0415 - not with --no-follow

    code = follow(client, made["run_id"], View(as_json=as_json, timestamps=timestamps))
    if made["kind"] == "prompt" and client.get(made["run_id"])["planner"] == "smoke":
        print(
            "No language model is configured, so the prompt was not carried out (planner: smoke).\n"
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
    return {"prompt": prompt[0]}


def read_plan(file: str) -> dict[str, Any]:
    """Read a plan: a list of steps, or an object with `steps` and other fields of a run."""
    import yaml  # noqa: PLC0415 - only for plans

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        plan: Any = yaml.safe_load(text)
    except OSError as error:
        raise CliError(f"{file}: {error.strerror}", 2) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CliError(f"{file} is not YAML: {error}", 2) from error
    body = {"steps": plan} if isinstance(plan, list) else plan
    if not isinstance(body, dict) or "steps" not in body:
        raise CliError(f"{file} holds no plan: a list of steps, or an object with `steps`", 2)
    try:
        body = json.loads(json.dumps(body))
    except (TypeError, ValueError) as error:
        raise CliError(f"{file} holds what JSON has not: {error}", 2) from error
    return {name: value for name, value in cast("dict[str, Any]", body).items() if name != "start"}


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


def uploads_of(argv: list[str], named: list[Path]) -> list[Upload]:
    """Return what to bring: files below this folder that the command names, and what --with names."""
    found: dict[str, Upload] = {}
    for word in argv:
        path = _local_file(word)
        if path is not None:
            found[path] = Upload(Path(word), path)
    for path in named:
        for upload in _brought(path):
            found[upload.path] = upload
    if len(found) > _MAX_FILES:
        raise CliError(f"{len(found)} files are too many to upload one by one; bring an archive instead", 2)
    return list(found.values())


def _local_file(word: str) -> str | None:
    """Return the workspace path of an argument that is a file below this folder, None if it is none."""
    path = PurePosixPath(os.path.normpath(word)) if word and "\0" not in word else None
    if path is None or path.is_absolute() or ".." in path.parts:
        return None
    try:
        return str(path) if Path(path).is_file() else None
    except OSError:  # a word too long for a name
        return None


def _brought(path: Path) -> list[Upload]:
    if path.is_file():
        return [Upload(path, _local_file(str(path)) or path.name)]
    if not path.is_dir():
        raise CliError(f"--with {path}: there is no such file or folder", 2)
    inside = PurePosixPath(os.path.normpath(path))
    base = PurePosixPath(path.resolve().name) if inside.is_absolute() or ".." in inside.parts else inside
    found: list[Upload] = []
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(files):
            source = Path(folder, name)
            if source.is_file():
                found.append(Upload(source, str(base / source.relative_to(path).as_posix())))
    return found
