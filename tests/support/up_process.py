"""A real `tailrun up` in a process of its own, for tests that use it as people do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from support.forked import start_forked
from support.servers import free_port

START_S = 180


def until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    """Wait for a condition; fail with its source line when it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without what would lead a command elsewhere."""
    ours = (
        "API",
        "TOKEN",
        "TAILRUN_URL",
        "TAILRUN_TOKEN",
        "DATA_DIR",
        "PORT",
        "HOST",
        "REDIS_URL",
        "REDIS_PORT",
    )
    return {name: value for name, value in os.environ.items() if name not in ours} | extra


def tailrun(
    *args: str, env: dict[str, str], cwd: Path, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command of the CLI to its end."""
    return subprocess.run(
        [sys.executable, "-m", "app", *args],
        cwd=cwd,
        env=env | {"PYTHONPATH": _path(env)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _forked(*args: str, env: dict[str, str], cwd: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Do the same in a process that need not import anything: most of a command's time is that."""
    code = f"import sys; sys.argv = {['tailrun', *args]!r}; from app.cli import main; main()"
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = start_forked(code, env | {"PYTHONPATH": _path(env)}, out, err=err, cwd=cwd)
        try:
            status = process.wait(timeout_s)
        finally:
            process.kill()
        texts = (file.read_text() for file in (out, err))
        return subprocess.CompletedProcess(["tailrun", *args], status, *texts)


def _path(env: dict[str, str]) -> str:
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])


class Up:
    """One data folder and the `up` on it; may be killed and started again."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.env = clean_environment(
            DATA_DIR=str(self.data), PORT=str(free_port()), REDIS_PORT=str(free_port()), **env
        )
        self.out = folder / "up.out"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return int(self.env["PORT"])

    @property
    def redis_port(self) -> int:
        return int(self.env["REDIS_PORT"])

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    @property
    def said(self) -> str:
        return self.out.read_text()

    @property
    def token(self) -> str:
        found = re.search(r"is ready: \S+  token (\S+)", self.said)
        assert found
        return found[1]

    def start(self) -> Up:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "up"],
                cwd=self.folder,
                env=self.env | {"PYTHONPATH": _path(self.env)},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(lambda: "Tailrun is ready" in self.said or self.exit_code is not None, START_S)
        assert self.exit_code is None, self.said
        return self

    @property
    def exit_code(self) -> int | None:
        assert self.process
        return self.process.poll()

    def children(self) -> dict[str, psutil.Process]:
        """The direct children, by what they are."""
        found: dict[str, psutil.Process] = {}
        for child in psutil.Process(self.pid).children():
            try:
                argv = child.cmdline()
            except psutil.ZombieProcess:  # dead, and not yet waited for
                continue
            if argv:
                found["redis" if "-server" in argv[0] else argv[-1]] = child
        return found

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """End it in order; return its exit code."""
        assert self.process
        if self.exit_code is None:
            self.process.send_signal(signum)
        return self.process.wait(120)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def run(self, *args: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a client command against this `up`."""
        return _forked(*args, env=self.env, cwd=self.folder, timeout_s=timeout_s)
