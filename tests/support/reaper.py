"""Ends what tests have started once the tests themselves are gone, however they ended.

Servers of a test end with its fixtures, and most also when their parent is gone. But a `make test` that is
killed runs no fixture's end, and what has a session of its own hears no signal of a terminal. So each
process that runs tests starts this file as a script, which waits until its stdin closes and then ends every
process that has inherited a certain variable, or that it was told of: a Redis writes its title over its
environment. Programs that are given an environment of their own (tools of a run) have guards of their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import psutil

VARIABLE = "TAILRUN_TEST_SESSION"
"""What a test process starts inherits this, with a value that no other test process has."""
_GRACE_S = 5.0
"""What is asked to end may remove its folders meanwhile."""
_reapers: dict[int, subprocess.Popen[bytes]] = {}
"""By the process whose children it reaps; a fork's copy is not its own."""


def start() -> None:
    """Mark this process's children to come, and start their reaper."""
    os.environ[VARIABLE] = uuid.uuid4().hex
    _reapers[os.getpid()] = subprocess.Popen(
        [sys.executable, __file__, os.environ[VARIABLE]],
        stdin=subprocess.PIPE,  # closed when this process ends
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        start_new_session=True,
    )


def watch(pid: int) -> None:
    """Tell this process's reaper, if it has one, of a child that does not keep its environment."""
    reaper = _reapers.get(os.getpid())
    if reaper is not None and reaper.stdin is not None:
        reaper.stdin.write(b"%d\n" % pid)
        reaper.stdin.flush()


def stop() -> None:
    """Do what the end of this process would do: end what is left, and wait until it is gone."""
    reaper = _reapers.pop(os.getpid())
    assert reaper.stdin
    reaper.stdin.close()
    reaper.wait()


def marked(variable: str, value: str) -> Iterator[psutil.Process]:
    """Find the living processes that have inherited a variable."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if is_alive(process) and process.environ().get(variable) == value:
                yield process


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs: a dead one that waits to be collected does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _main(value: str) -> None:
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    told = set[psutil.Process]()
    for line in sys.stdin.buffer:
        with contextlib.suppress(psutil.NoSuchProcess):
            told = {process for process in told if process.is_running()} | {psutil.Process(int(line))}
    asked, kill_at = set[psutil.Process](), time.monotonic() + _GRACE_S
    while left := {*filter(is_alive, told), *marked(VARIABLE, value)}:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                if time.monotonic() > kill_at:
                    process.kill()
                elif process not in asked:
                    process.terminate()
                    process.resume()
        asked |= left
        time.sleep(0.05)


if __name__ == "__main__":
    _main(sys.argv[1])
