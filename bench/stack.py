"""The system under test: one `up`, as users start it, in a folder of its own that goes afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

START_S = 60.0
STOP_S = 60.0


class Stack:
    """API, worker and Redis as real processes. `settings` are environment variables."""

    def __init__(self, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tailrun-bench-"))
        self._settings = {"PORT": "0", "LOG_LEVEL": "warning", "DATA_DIR": str(self.folder), **settings}

    def __enter__(self) -> Self:
        with (self.folder / "up.log").open("wb") as log:
            self._up = subprocess.Popen(
                [sys.executable, "-P", "-m", "app", "up"],
                env=os.environ | self._settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        where = self.folder / "up.json"
        while not where.exists():
            if self._up.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "up.log").read_text()[-2000:]
                self._stop()
                raise SystemExit(f"`up` did not start:\n{said}")
            time.sleep(0.02)
        serving = json.loads(where.read_text())
        self.url: str = serving["url"]
        self.token: str = serving["token"]
        self.host, _, port = self.url.removeprefix("http://").partition(":")
        self.port = int(port)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._up.send_signal(signal.SIGTERM)
        try:
            self._up.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._up.pid, signal.SIGKILL)
            self._up.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> dict[str, psutil.Process]:
        """Return `api`, `worker` and `redis` with their processes."""
        found: dict[str, psutil.Process] = {}
        for child in psutil.Process(self._up.pid).children():
            line = child.cmdline()
            name = next((name for name in ("api", "worker") if line[-1:] == [name]), None)
            if name is None and any("redis" in part or "valkey" in part for part in line[:1]):
                name = "redis"
            if name is not None:
                found[name] = child
        return found

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds that each process has used, its ended children included."""
        times = {name: process.cpu_times() for name, process in self.processes().items()}
        return {name: t.user + t.system + t.children_user + t.children_system for name, t in times.items()}
