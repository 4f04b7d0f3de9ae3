"""`tailrun demo`: everything starts, two runs go through it, everything stops.

A run takes the way that every run takes: HTTP, queue, worker, tools, and its lines come
back over the public event stream. The first reads this repository's own documents. The second is an agent's,
without a model: its replies are recorded, the loop and its tools are real.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from tailrun.commands.connection import CliError
from tailrun.commands.render import size

if TYPE_CHECKING:
    from app.up.children import Supervisor
    from tailrun import Client
    from tailrun.commands.serving import Serving

ROOT = Path(__file__).resolve().parents[2]
PLAN = ROOT / "examples" / "demo" / "plan.yaml"
TRANSCRIPT = PLAN.with_name("agent.ndjson")
KEPT = Path(".tailrun") / "demo"


def demo() -> None:
    """Start everything on free ports, run a real job and a recorded agent, stop everything."""
    if not PLAN.exists():
        raise CliError("The demo works on the documents of a checkout: git clone, then make demo")
    folder = Path(tempfile.mkdtemp(prefix="tailrun-demo-"))
    try:
        code = _demo(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    raise typer.Exit(code)


def _demo(folder: Path) -> int:
    from app.config import VARIABLES, ApiSettings, DataSettings, RedisSettings, Settings  # noqa: PLC0415 - `--help` needs none of these
    from app.up.data_folder import DataFolderRefused  # noqa: PLC0415
    from app.up.stack import up  # noqa: PLC0415

    # Nothing from the environment counts: the demo must not touch a database or bucket that is named there.
    chosen = Settings.model_construct(
        data=DataSettings(folder=folder / "data"), api=ApiSettings(port=0), redis=RedisSettings(port=0)
    )
    environ = {name: value for name, value in os.environ.items() if name.upper() not in VARIABLES}
    began = time.monotonic()
    _say("Starting Redis, database, API and worker in a temporary folder …")
    try:
        with up(chosen, _say, environ=environ) as running:
            if running is None:
                return 130
            serving, supervisor = running
            _say(f"Ready after {time.monotonic() - began:.1f} s: {serving.url}, {serving.redis_url}")
            code, line = _run(serving, supervisor)
    except DataFolderRefused as error:
        raise CliError(str(error)) from error
    _say(line)
    return code


def _run(serving: Serving, supervisor: Supervisor) -> tuple[int, str]:
    from tailrun import Client  # noqa: PLC0415
    from tailrun.commands.follow import FollowView, follow  # noqa: PLC0415 - as above
    from tailrun.commands.run import read_plan  # noqa: PLC0415
    from tailrun.commands.uploads import Upload, submit  # noqa: PLC0415

    sources = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    uploads = [Upload(source, source.relative_to(ROOT).as_posix()) for source in sources]
    with _interruptible(), Client(serving.url, serving.token) as client:
        run_id = submit(client, read_plan(str(PLAN)), uploads, quiet=True)["run_id"]
        _say(f"Uploaded {len(uploads)} documents of this repository. The run's lines, as it prints them:\n")
        code = follow(client, run_id, FollowView(framed=True, on_event=lambda: supervisor.tick(0)))
        made = _keep(client, run_id, {upload.path for upload in uploads})
        run = client.get(run_id)
        _tell(made)
        if code:
            return code, f"\nThe run {run['status']}. Nothing is left running."
        replay = client.create(transcript=TRANSCRIPT.read_text(encoding="utf-8"))
        _say("\nNow an agent. No model is called: its replies are RECORDED. Its loop and its tools are real.")
        _say(f"Its task: {replay['spec']['prompt']}\n")
        view = FollowView(framed=True, on_event=lambda: supervisor.tick(0))
        code = follow(client, replay["run_id"], view)
        again = _keep(client, replay["run_id"], set())
        agent = client.get(replay["run_id"])
    _tell(again)
    lines, files = run["log_lines"] + agent["log_lines"], len(made) + len(again)
    ended = "Both runs succeeded" if not code else f"The agent's run {agent['status']}"
    return code, f"\n{ended}: {lines} lines, {files} files. Nothing is left running. Next: make up"


def _tell(made: list[tuple[str, int]]) -> None:
    _say("\nFiles that it made, kept for you to look at:")
    for path, bytes_ in made:
        _say(f"  {KEPT / path}  {size(bytes_)}")


def _keep(client: Client, run_id: str, brought: set[str]) -> list[tuple[str, int]]:
    """Download what the run made; return paths and sizes."""
    from tailrun.commands.files import save  # noqa: PLC0415 - as above

    made: list[tuple[str, int]] = []
    KEPT.mkdir(parents=True, exist_ok=True)
    for file in client.files(run_id):
        path: str = file["path"]
        if path not in brought:
            target = KEPT / path
            target.parent.mkdir(parents=True, exist_ok=True)
            save(client, run_id, path, target)
            made.append((path, file["size"]))
    return made


@contextmanager
def _interruptible() -> Generator[None]:
    """Let Ctrl-C break off what waits for the network; the supervisor's handlers come back after it."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise CliError("The demo was stopped", 128 + signum)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _say(text: str) -> None:
    print(text, flush=True)
