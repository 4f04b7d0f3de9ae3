"""For tests of the local executor: one that beats, and a look at what still runs."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil

from app.execution.process import LocalExecutor


@contextlib.asynccontextmanager
async def beating(executor: LocalExecutor) -> AsyncIterator[LocalExecutor]:
    """Call `heartbeat` from a thread until the end, as a worker's lease does; then close."""
    over = threading.Event()

    def beat() -> None:
        executor.heartbeat()
        while not over.wait(0.2):
            executor.heartbeat()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield executor
    finally:
        over.set()
        thread.join()
        await executor.close()


def programs_of(run_id: str) -> list[object]:
    """Find the living processes of a run, whatever their parents, by their environment."""
    found = list[object]()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            marked = process.environ().get("TAILRUN_RUN_ID") == run_id
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process.pid, process.cmdline()))
    return found


def wait_for(what: Callable[[], object], within_s: float) -> float:
    """Wait until `what` is true; return how long it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < within_s, "it did not happen in time"
        time.sleep(0.01)
    return time.monotonic() - began


def open_fds() -> set[str]:
    """What this process has open, by number."""
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


def children() -> list[psutil.Process]:
    """Return this process's children, zombies too; servers that the whole session shares left out."""
    return [child for child in psutil.Process().children() if not _is_server(child)]


def _is_server(child: psutil.Process) -> bool:
    if child.status() == psutil.STATUS_ZOMBIE:
        return False
    words = " ".join(child.cmdline())
    return any(name in words for name in ("-server", "postgres", "support.forked", "support/reaper"))


def executor_at(path: Path, *, silence_s: float = 60, grace_s: float = 1) -> LocalExecutor:
    return LocalExecutor(tmp_dir=path / "tmp", silence_s=silence_s, grace_s=grace_s)
