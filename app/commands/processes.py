"""Process commands: up and down, api, worker, migrate, openapi."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from string import ascii_letters, digits
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.config import settings
from tailrun.ansi import harmless
from tailrun.commands.connection import ENV_REDIS_URL, CliError, data_dir
from tailrun.commands.entry import show_tracebacks

if TYPE_CHECKING:
    from app.config import Settings
    from tailrun.commands.serving import Serving

_WORKER_NAME, _WORKER_NAME_CHARS = frozenset(f"{ascii_letters}{digits}._-"), 100
_NAME_COLOURS = {"api": "\x1b[34m", "worker": "\x1b[36m"}


def up(
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Don't show what API and worker log.")] = False,
) -> None:
    """Serve everything on this machine until Ctrl-C: Redis, database, API, worker.

    HOST, PORT, REDIS_PORT, DATA_DIR, API_TOKEN and the other settings come from the environment.
    """
    from app.config import is_loopback  # noqa: PLC0415
    from app.up.data_folder import DataFolderRefused  # noqa: PLC0415
    from app.up.stack import up as start  # noqa: PLC0415

    _forget_redis_of_env()
    chosen = settings()
    host = chosen.api.host
    if not is_loopback(host) and chosen.api.token is not None:
        say(f"Warning: HOST={host} lets other machines in: who has the token can execute code here.")
    _check_tasks(chosen)
    try:
        with start(chosen, say, None if quiet else _echo) as running:
            if running is not None:
                serving, supervisor = running
                print(banner(serving), flush=True)
                supervisor.run()
            say(f"Stopping: runs get up to {chosen.worker.drain_s:g} s to end (Ctrl-C again: at once).")
    except DataFolderRefused as error:
        raise CliError(str(error)) from error
    say("Stopped. Everything is in the data folder; the next `up` continues from there.")


def _forget_redis_of_env() -> None:
    """Ignore a REDIS_URL that `tailrun env` set: another `up` has that Redis, or had it."""
    if os.environ.get("REDIS_URL", "") == os.environ.get(ENV_REDIS_URL, None):
        say("REDIS_URL is what `tailrun env` set in this shell; `up` starts a Redis of its own.")
        del os.environ["REDIS_URL"]


def _check_tasks(chosen: Settings) -> None:
    """Report mistakes in TASKS_FILE once, here, before API and worker would each report them."""
    if chosen.tasks.file is None:
        return
    from app.plan.task_types import BadTasksFile, load  # noqa: PLC0415

    try:
        load(chosen.tasks.file)
    except BadTasksFile as error:
        raise CliError(f"TASKS_FILE:\n{error}", 2) from error


def say(text: str) -> None:
    """Print a line of `up`'s own."""
    print(text, file=sys.stderr, flush=True)


def _echo(name: str, line: str) -> None:
    line = harmless(line, colours=sys.stderr.isatty())
    if sys.stderr.isatty():
        colour = _NAME_COLOURS.get(name.partition("-")[0], "")
        print(f"{colour}{name:<8}\x1b[2m│\x1b[0m {line}", file=sys.stderr, flush=True)
    else:
        print(f"{name:<8}| {line}", file=sys.stderr, flush=True)


def banner(serving: Serving) -> str:
    """Return the ready line, and lines to copy: each works as it is printed, in any folder."""
    me = f"DATA_DIR={shlex.quote(serving.data_dir)} {_command()}"
    port = serving.redis_url.rpartition(":")[2].partition("/")[0]
    at = "" if port == "6379" else f" -p {port}"
    local = serving.redis_url.startswith("redis://127.0.0.1:")
    redis_cli = f"redis-cli{at}" if local else f"redis-cli -u {serving.redis_url}"
    or_else = ""
    if "+sentinel://" in serving.redis_url or serving.redis_url.startswith("unix://"):
        redis_cli = f"{me} redis"  # redis-cli has no URL for these
    elif shutil.which("redis-cli") is None:
        or_else, redis_cli = f"    # or, where it is installed: {redis_cli} LLEN jobs:pending", f"{me} redis"
    auth = f'-H "Authorization: Bearer {serving.token}"'
    execute = f"curl -X POST {serving.url}/agent/execute {auth} -d"
    ready = f"Tailrun is ready: {serving.url}  token {serving.token}  redis {serving.redis_url}"
    return f"""{ready}  data {serving.data_dir}

  RUN_ID=$({execute} '{{"action": "create", "prompt": "Test Phase 2B"}}' -s | {_RUN_ID_OF})
  {execute} '{{"action": "start", "run_id": "'$RUN_ID'"}}'
  curl -N {serving.url}/agent/logs/$RUN_ID/stream {auth}
  {redis_cli} LLEN jobs:pending{or_else}

  eval "$({me} env)"   # sets API, TOKEN, REDIS_URL and PATH for:
  tailrun run -- echo hello
  tailrun redis LLEN jobs:pending

Ctrl-C drains and stops everything.
"""


_RUN_ID_OF = r"""sed -n 's/.*"run_id":"\([^"]*\)".*/\1/p'"""


def _command() -> str:
    """Return how a shell in any folder, and with any PATH, starts this very `tailrun`."""
    script = Path(sys.executable).with_name("tailrun")
    if os.access(script, os.X_OK):
        return shlex.quote(str(script))
    from app.core.parent_death import OWN_PYTHON, ROOT  # noqa: PLC0415 - only where nothing is installed

    return f"PYTHONPATH={shlex.quote(ROOT)} {shlex.join([*OWN_PYTHON, 'app'])}"


def down() -> None:
    """Stop the `up` of this folder (DATA_DIR)."""
    from app.up.data_folder import DataFolder  # noqa: PLC0415

    folder = DataFolder(data_dir())
    holder = folder.holder()
    if holder is None:
        print(f"No `tailrun up` is running on {folder.path}")
        return
    chosen = settings()
    os.kill(holder, signal.SIGTERM)
    print(f"Stopping process {holder}: runs get up to {chosen.worker.drain_s:g} s to end", flush=True)
    if not folder.wait_free(chosen.worker.drain_s + chosen.tools.cancel_grace_s + 60):
        raise CliError(f"Process {holder} is still stopping; see {folder.path / 'logs'}")
    print("Stopped")


def api(
    *,
    with_worker: Annotated[
        bool, typer.Option("--with-worker", help="Also keep a worker running, as a child process.")
    ] = False,
) -> None:
    """Serve the HTTP API."""
    show_tracebacks()
    chosen = settings()
    if not with_worker:
        from app.main import serve  # noqa: PLC0415 - the web framework, only here

        _private_data_dir(chosen, "api")
        raise typer.Exit(serve(chosen))
    from app.core.parent_death import OWN_PYTHON  # noqa: PLC0415
    from app.up.children import ChildSpec, Supervisor  # noqa: PLC0415

    env = dict(os.environ) | {"WORKER_FALLBACK_S": "0"}  # one supervisor is enough
    with Supervisor(say) as supervisor:
        for stage, (name, stop_s) in enumerate({"api": 15.0, "worker": _drain_s(chosen)}.items()):
            argv = [*OWN_PYTHON, "app", name]
            supervisor.start(ChildSpec(name, argv, env, stop_s=stop_s, stage=stage))
        supervisor.run()


def _private_data_dir(chosen: Settings, process: str) -> None:
    """Make the data folder before anything else would, and log it if others get at one that was there."""
    from app.core.private_files import is_open_to_others, private_folder  # noqa: PLC0415 - as above

    try:
        private_folder(chosen.data.folder)
    except OSError:
        return  # where files are in S3 nothing may be needed there; what is, raises its own error
    if is_open_to_others(chosen.data.folder):
        from app.core.telemetry import configure_logging, get_logger  # noqa: PLC0415 - only to warn

        configure_logging(chosen.own_log, process)
        folder = str(chosen.data.folder)
        get_logger(__name__).warning(
            "others get at the runs' files", folder=folder, mend=f"chmod 700 {folder}"
        )


def worker(
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Start it again whenever it ends, until told to stop.")
    ] = False,
    name: Annotated[str, typer.Option(help="What its id begins with, in place of this machine's name.")] = "",
) -> None:
    """Run a worker: take runs from the queue until told to stop."""
    show_tracebacks()
    if set(name) - _WORKER_NAME or len(name) > _WORKER_NAME_CHARS:
        raise CliError("--name: letters, digits, '.', '_' and '-', at most 100", 2)
    chosen = settings()
    if keep:
        _keep_worker(chosen, name)
        return
    from app.worker.main import serve  # noqa: PLC0415 - everything a run needs, only here

    _private_data_dir(chosen, "worker")
    raise typer.Exit(serve(chosen, name))


def _keep_worker(chosen: Settings, name: str) -> None:
    """Supervise one worker; the API starts this command where it lets a worker of its own run."""
    from app.core.parent_death import OWN_PYTHON, launcher_pipe  # noqa: PLC0415
    from app.up.children import ChildSpec, Supervisor  # noqa: PLC0415

    with Supervisor(say, launcher=launcher_pipe(), retires=True) as supervisor:
        argv = [*OWN_PYTHON, "app", "worker", *(("--name", name) if name else ())]
        supervisor.start(ChildSpec("worker", argv, os.environ, stop_s=_drain_s(chosen)))
        supervisor.run()


def _drain_s(chosen: Settings) -> float:
    """Return how long a worker may take to end after SIGTERM, in seconds."""
    return chosen.worker.drain_s + chosen.tools.cancel_grace_s + 10


def migrate() -> None:
    """Bring the database to this version's tables."""
    from app.core.errors import StorageError  # noqa: PLC0415
    from app.db.migrate import migrate as upgrade  # noqa: PLC0415 - the database, only here

    chosen = settings()
    if chosen.data.database_url is None:
        _private_data_dir(chosen, "migrate")
    try:
        upgrade(chosen.data.effective_database_url)
    except StorageError as error:
        raise CliError(str(error)) from error
    print("The database is up to date.")


def reseal() -> None:
    """Seal what projects keep secret anew, with the first key of PROJECTS_KEY."""
    import asyncio  # noqa: PLC0415 - the database, only here

    from app.core.errors import TailrunError  # noqa: PLC0415
    from app.db.engine import Database  # noqa: PLC0415
    from app.db.migrate import ensure_current  # noqa: PLC0415
    from app.db.project_store import ProjectStore  # noqa: PLC0415

    chosen = settings()

    async def work() -> list[str]:
        db = Database(chosen.data.effective_database_url)
        try:
            ensure_current(chosen.data.effective_database_url)
            return await ProjectStore(db, chosen.projects.keys).reseal()
        finally:
            await db.close()

    try:
        done = asyncio.run(work())
    except TailrunError as error:
        raise CliError(str(error)) from error
    print(f"{len(done)} projects: {', '.join(done) or 'none keeps a secret'}")


def openapi() -> None:
    """Print the API's description (OpenAPI, YAML)."""
    from app.main import openapi_yaml  # noqa: PLC0415 - the web framework, only here

    print(openapi_yaml(), end="")
