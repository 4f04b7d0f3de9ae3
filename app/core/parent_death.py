"""Ties a child process to its parent: no child outlives `up` or the API, even after `kill -9`.

On Linux the kernel does it (`PR_SET_PDEATHSIG`). Elsewhere this module is started as a small
process between the two: it watches a pipe that closes when the parent is gone.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1

LAUNCHER_FD = "TAILRUN_LAUNCHER_FD"
"""Names the read end of a pipe that whoever started us holds open for as long as it lives."""

RETIRE = signal.SIGUSR1
"""Asks a worker to claim no more, and to end when its runs have, however long they take."""


def launcher_pipe() -> int | None:
    """Take the launcher's pipe out of the environment, so that no child of ours inherits it."""
    text = os.environ.pop(LAUNCHER_FD, "")
    if not text.isdecimal():
        return None
    fd = int(text)
    try:
        os.set_inheritable(fd, False)
    except OSError:  # a program between the launcher and us closed it
        return None
    return fd


ROOT = str(Path(__file__).resolve().parents[2])
"""Where this very Tailrun was imported from; its children find it there, by PYTHONPATH."""

OWN_PYTHON = (sys.executable, "-P", "-m")
"""How a child begins: `-P`, or a folder named `app` in the working directory would be imported."""


def ignore(signum: int, frame: FrameType | None) -> None:
    """Do nothing: a handler is needed for the signal to wake the selector."""


def tie(signum: signal.Signals) -> Callable[[], None]:
    """Return what a forked child calls before `exec`, to get `signum` when this process dies.

    Only for a parent with one thread: the kernel means the death of the thread that forked.
    """
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signum))
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    return in_child


def bound_to_parent(argv: Sequence[str], signum: signal.Signals, pipe: int) -> list[str]:
    """Return the command that runs `argv` until the pipe, inherited as fd `pipe`, closes."""
    return [*OWN_PYTHON, "app.core.parent_death", str(pipe), str(int(signum)), *argv]


def main(pipe: int, signum: int, argv: Sequence[str]) -> int:
    """Run `argv`; pass signals on; send `signum` when the pipe closes. Returns its exit code."""
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, ignore)
    child = subprocess.Popen(list(argv), close_fds=False)
    for each in (signal.SIGTERM, signal.SIGINT, RETIRE):
        signal.signal(each, lambda number, _: child.send_signal(number))
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while child.poll() is None:
            for key, _ in selector.select():
                if key.fd == ended:
                    os.read(ended, 64)
                elif not os.read(pipe, 1):
                    selector.unregister(pipe)
                    child.send_signal(signum)
    code = child.returncode
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
