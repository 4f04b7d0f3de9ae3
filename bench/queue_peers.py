"""Who is measured against whom: each peer's program, its scratch folder, and how one talks to it.

Peers are installed by their own package managers (npm, pip in a venv each) below `.cache/`, once; one that
can't be had here is left out, and the report says so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache" / "bench-queue"
INSTALL_S = 180


class Unavailable(Exception):
    """A peer can't be installed or started here."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One contender. `jobs`: how many a drain takes, for about a second; `pip`, `npm`: what it needs."""

    name: str
    program: str
    jobs: int
    more: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    redelivery: str = "–"

    def command(self, role: str, url: str) -> list[str]:
        """Return what to start: `role` is `work` or `produce`."""
        program = str(HERE / "peers" / self.program)
        if self.npm:
            return ["node", program, role, url, str(self.home)]
        python = str(self.home / "bin" / "python") if self.pip else sys.executable
        return [python, program, role, url, *self.more]

    @property
    def home(self) -> Path:
        """Where it is installed."""
        return CACHE / Path(self.program).stem

    def install(self) -> None:
        """Install what it needs, unless the same is there from before."""
        wanted = " ".join((*self.pip, *self.npm))
        mark = self.home / ".installed"
        if not wanted or (mark.exists() and mark.read_text() == wanted):
            return
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        if self.npm:
            (self.home / "package.json").write_text("{}")
            _call("npm", "install", "--no-audit", "--no-fund", "--silent", *self.npm, cwd=self.home)
        else:
            _call(sys.executable, "-m", "venv", self.home)
            _call(self.home / "bin" / "python", "-m", "pip", "install", "--quiet", *self.pip)
        mark.write_text(wanted)


RAW_MOVES = Peer("raw: LPUSH; BLMOVE + LREM in pipelines of 32", "queue_raw.py", 20_000, ("moves",))
RAW_SCRIPT = Peer("raw: LPUSH; Lua, ack 100 + take 100", "queue_raw.py", 100_000, ("script",))
BULLMQ = Peer("BullMQ", "queue_bullmq.mjs", 20_000, npm=("bullmq@6.7", "ioredis@5"), redelivery="61.7 s ¹")
SAQ = Peer(
    "saq",
    "queue_saq.py",
    3_000,
    pip=("saq[redis,hiredis]==0.26.*", "typing-extensions", "uvloop"),
    redelivery="not in 440 s ¹",
)
TASKIQ = Peer(
    "taskiq-redis, streams",
    "queue_taskiq.py",
    4_000,
    pip=("taskiq-redis==1.2.*", "hiredis", "uvloop"),
    redelivery="600 s ²",
)
ARQ = Peer("arq", "queue_arq.py", 2_000, pip=("arq==0.28.*", "hiredis", "uvloop"), redelivery="309 s ¹")
TAILRUN = Peer("**Tailrun, queue layer**", "queue_tailrun.py", 100_000)
ALL = (RAW_MOVES, RAW_SCRIPT, BULLMQ, SAQ, TASKIQ, ARQ, TAILRUN)


class Agent:
    """A peer's worker or producer as a process; one question and one answer at a time."""

    def __init__(self, peer: Peer, role: str, url: str) -> None:
        self._process = subprocess.Popen(
            peer.command(role, url),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(CACHE / f"{peer.home.name}.log").open("wb"),
            text=True,
            env=os.environ | {"PYTHONPATH": str(HERE / "peers")},
        )
        self._name = peer.name
        self.versions: str = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def ask(self, words: str) -> Any:
        """Say something; return the answer."""
        assert self._process.stdin
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        return self._read()

    def kill(self) -> None:
        """Kill -9."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def cpu_s(self) -> float:
        """Return the CPU seconds that it has used, to the nanosecond where the kernel says them."""
        return cpu_s(self._process.pid)

    def rss_mb(self) -> float:
        """Return its resident set in megabytes."""
        return psutil.Process(self._process.pid).memory_info().rss / 1e6

    def _read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable(f"{self._name} ended; its last words are in {CACHE.name}/")
        return json.loads(line)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process: the scheduler's count per thread, or else the kernel's ticks."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int(task.joinpath("schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        times = psutil.Process(pid).cpu_times()
        return times.user + times.system


def _call(*words: str | Path, cwd: Path | None = None) -> None:
    try:
        subprocess.run(words, cwd=cwd, check=True, capture_output=True, timeout=INSTALL_S)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        raise Unavailable(f"{words[0]}: {error} {said.decode(errors='replace')[-300:]}") from error
