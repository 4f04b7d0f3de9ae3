"""Why a program did not start: a message with what to do, and whether to try again."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol


class ErrorCode(StrEnum):
    """Why a run failed: the values of `error.code`."""

    START_FAILED = "start_failed"
    EXIT_NONZERO = "exit_nonzero"
    TIMEOUT = "timeout"
    WORKER_LOST = "worker_lost"
    EXECUTOR_UNAVAILABLE = "executor_unavailable"
    RESOURCE_LIMIT = "resource_limit"
    IMAGE_PULL = "image_pull"
    UNSCHEDULABLE = "unschedulable"
    OOM_KILLED = "oom_killed"
    EVICTED = "evicted"
    PROJECT_UNAVAILABLE = "project_unavailable"
    INVALID_PLAN = "invalid_plan"
    CANCELLED = "cancelled"
    NO_MODEL = "no_model"
    MODEL_UNAVAILABLE = "model_unavailable"
    MODEL_REJECTED = "model_rejected"
    MODEL_BAD_REPLY = "model_bad_reply"
    CONTEXT_OVERFLOW = "context_overflow"
    BUDGET = "budget"
    STUCK_LOOP = "stuck_loop"
    APPROVAL_EXPIRED = "approval_expired"
    INVALID_RESULT = "invalid_result"
    REPLAY_DIVERGED = "replay_diverged"

    @property
    def retried(self) -> bool:
        """Whether an attempt that failed so is tried again, unless the run has a `retry_on`."""
        return self not in _FINAL


_FINAL = frozenset(
    {ErrorCode.EXIT_NONZERO, ErrorCode.TIMEOUT, ErrorCode.INVALID_PLAN, ErrorCode.CANCELLED}
    | {ErrorCode.OOM_KILLED}  # the next try has the same limit
    | {ErrorCode.NO_MODEL, ErrorCode.MODEL_REJECTED, ErrorCode.MODEL_BAD_REPLY, ErrorCode.CONTEXT_OVERFLOW}
    | {ErrorCode.BUDGET, ErrorCode.STUCK_LOOP}  # the next try has spent as much
    | {ErrorCode.APPROVAL_EXPIRED, ErrorCode.INVALID_RESULT, ErrorCode.REPLAY_DIVERGED}
)


class RunFailure(Exception):
    """An attempt failed. `retried` narrows the code's default: a missing program stays missing.

    `away`: a server or a machine that the run needs was not there, and nothing is known against the
    run itself; whoever decides may wait for it and count no try.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        step: str | None = None,
        exit_code: int | None = None,
        retried: bool | None = None,
        away: bool = False,
    ) -> None:
        super().__init__(message)
        self.away = away
        self.code = code
        self.message = message
        self.step = step
        self.exit_code = exit_code
        self.retried = code.retried if retried is None else retried
        self._by_its_code = retried is None

    def retried_by(self, retry_on: Collection[str] | None) -> bool:
        """Whether a run with this `retry_on` (None: not given) tries again after the failure.

        What no other attempt can mend is final whatever `retry_on` is, and so is a cancel.
        """
        if retry_on is None or not self._by_its_code:
            return self.retried
        return self.code in retry_on and self.code is not ErrorCode.CANCELLED

    def as_dict(self) -> dict[str, Any]:
        """Return the run's `error` field."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.step is not None:
            body["step"] = self.step
        return body


_SHORT = frozenset(
    {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT},
)
"""The machine ran out of something: another attempt may find it."""


class Command(Protocol):
    """The program that was to be started."""

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
