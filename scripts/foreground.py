"""Run a command as the terminal's own foreground job, so that Ctrl-C reaches it and not make.

GNU make dies of SIGINT whatever its child answers: `make up` could never end with exit code 0.
Here the command gets a process group of its own and, where there is one, the terminal; signals
sent to us are handed on, and Ctrl-Z stops make together with the command, as one job.

In a group of its own the command would outlive the SIGKILL of make's (a CI job's end, a terminal that
is killed). So it inherits a pipe that closes with us, and we end with make.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

LAUNCHER_FD = "TAILRUN_LAUNCHER_FD"
"""Tells the command which descriptor closes when we are gone."""
_PR_SET_PDEATHSIG = 1
HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def give_terminal_to(group: int) -> None:
    """Make `group` the foreground group of the terminal on stdin; without one, do nothing."""
    with contextlib.suppress(OSError):
        os.tcsetpgrp(0, group)


def take_terminal() -> None:
    """Become the terminal's foreground job (in the child, before it is the command)."""
    os.setpgrp()
    give_terminal_to(os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)


def end_with_parent() -> None:
    """Get SIGTERM, which we hand on, when make is killed alone; where the kernel can do that."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # it was killed meanwhile
        os.kill(os.getpid(), signal.SIGTERM)


def owns_terminal() -> bool:
    """Whether stdin is a terminal and we are its foreground job."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def run(argv: list[str]) -> int:
    """Run `argv` to its end and return its exit code as a shell counts it."""
    in_front = owns_terminal()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or taking the terminal back would stop us
    children: list[int] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)

    for number in HANDED_ON:
        signal.signal(number, hand_on)
    end_with_parent()
    closes_with_us, _held_open = os.pipe()
    # The child itself takes the terminal, before its first word: a Ctrl-C that answers it is its own.
    child = subprocess.Popen(
        argv,
        env=os.environ | {LAUNCHER_FD: str(closes_with_us)},
        pass_fds=(closes_with_us,),
        preexec_fn=take_terminal if in_front else os.setpgrp,  # noqa: PLW1509
    )
    os.close(closes_with_us)
    children.append(child.pid)
    try:
        return wait(child.pid, in_front=in_front)
    finally:
        if in_front:
            give_terminal_to(os.getpgrp())


def wait(pid: int, *, in_front: bool) -> int:
    """Wait for the end of `pid`; when it is stopped, stop our whole job until it is resumed."""
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if in_front:
            give_terminal_to(os.getpgrp())
        os.killpg(os.getpgrp(), signal.SIGSTOP)
        if in_front:
            give_terminal_to(pid)
        os.killpg(pid, signal.SIGCONT)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
