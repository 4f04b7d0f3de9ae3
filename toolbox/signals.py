"""The little of `signal` that is needed here, without its 8 ms of start-up: it brings in `enum`."""

from __future__ import annotations

import _signal  # pyright: ignore[reportMissingImports] - typeshed has only `signal`
import os

SIGCHLD: int = _signal.SIGCHLD
SIGCONT: int = _signal.SIGCONT
SIGINT: int = _signal.SIGINT
SIGKILL: int = _signal.SIGKILL
SIGPIPE: int = _signal.SIGPIPE
SIGTERM: int = _signal.SIGTERM
SIGXFSZ: int = _signal.SIGXFSZ


def signal_pipe(*numbers: int) -> int:
    """Have signals written into a pipe, a byte each; return the end to read from.

    PID 1 has no default actions: a signal without a handler would not reach us at all.
    """
    alarms, bell = os.pipe()
    os.set_blocking(bell, False)
    _signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    for number in numbers:
        _signal.signal(number, _nothing)
    return alarms


def _nothing(_number: int, _frame: object) -> None:
    """Be a handler: with one, the signal reaches the pipe."""
