"""Why a program did not start, in words that say what to do, and whether to try again."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from app.errors import ErrorCode, RunFailure

_SHORT = frozenset(
    {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT},
)
"""The machine ran out of something: another attempt may find it."""


class Command(Protocol):
    """What was to be started."""

    @property
    def argv(self) -> Sequence[str]:
        """The program and its arguments."""
        ...

    @property
    def cwd(self) -> Path:
        """Its working folder."""
        ...

    @property
    def env(self) -> Mapping[str, str]:
        """Its whole environment."""
        ...


def of_guard(error: OSError) -> RunFailure:
    """The worker could not start a guard."""
    return _of_machine(error.errno or 0)


def of_tool(number: int, at: str, command: Command) -> RunFailure:
    """The guard could not start the tool: error `number` while it was `at` some part of it."""
    if number in _SHORT or at not in ("exec", "chdir"):
        return _of_machine(number)
    if at == "chdir":
        message = f"The working folder {command.cwd} can't be entered: {os.strerror(number)}."
    else:
        message = _of_program(number, command)
    return RunFailure(ErrorCode.START_FAILED, message, retried=False)


def of_text(error: ValueError) -> RunFailure:
    """The command holds what no program can be given: a NUL, or a lone surrogate."""
    return RunFailure(ErrorCode.START_FAILED, f"The program can't be given this: {error}.", retried=False)


def _of_machine(number: int) -> RunFailure:
    code = ErrorCode.RESOURCE_LIMIT if number in _SHORT else ErrorCode.EXECUTOR_UNAVAILABLE
    return RunFailure(code, f"This machine could not start another process: {os.strerror(number)}.")


def _of_program(number: int, command: Command) -> str:
    program = command.argv[0] if command.argv else ""
    if number == errno.ENOENT and "/" not in program:
        return f"No program {program!r} was found on PATH ({command.env.get('PATH', '')})."
    if number == errno.ENOENT:
        return f"The program {program!r} or the interpreter that it names does not exist."
    if number == errno.EACCES:
        where = "" if "/" in program else f" on PATH ({command.env.get('PATH', '')})"
        return f"The program {program!r}{where} may not be run: is it executable?"
    if number == errno.ENOEXEC:
        return f"{program!r} is no program for this machine; a script begins with `#!` and its interpreter."
    if number == errno.E2BIG:
        return f"The arguments and the environment of {program!r} are too long."
    return f"The program {program!r} could not be started: {os.strerror(number)}."
