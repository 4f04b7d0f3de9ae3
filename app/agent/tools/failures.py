"""Whose fault an error is: the run's own files and limits, this machine's, or a server's that is away.

Only the last two are tried again. A fault of the run's own (too large, too many, a name that no disk
takes, a permission that a tool took away) would meet every other attempt as well, and a step that has
done its work is not to do it twice for that.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from app.core.errors import StorageError, TailrunError, TooLarge, Unprocessable
from tailrun.process.errors import ErrorCode, RunFailure

_NAMED = 5
_SHORT = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN},
)
_OF_FILES = frozenset(
    {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOENT}
    | {errno.EEXIST, errno.ENOTEMPTY, errno.EFBIG, errno.EILSEQ, errno.EINVAL, errno.ETXTBSY}
)


def failure_of(error: TailrunError | OSError, *, before_a_step: bool = False) -> RunFailure:
    """Return the failure that an error means. `before_a_step`: no tool was at work that could exit."""
    match error:
        case StorageError():
            text = f"the run's files can't be reached: {error}"
            return RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, text, away=True)
        case TooLarge():
            return RunFailure(ErrorCode.RESOURCE_LIMIT, error.message, retried=False)
        case Unprocessable():
            return RunFailure(ErrorCode.INVALID_PLAN, error.message)
        case TailrunError() if before_a_step:
            return RunFailure(ErrorCode.START_FAILED, error.message, retried=False)
        case TailrunError():
            return RunFailure(ErrorCode.EXIT_NONZERO, error.message, exit_code=1)
        case _:
            return _of_system(error)


def named(names: Sequence[str]) -> str:
    """Return a few of the names as a text shows them, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in sorted(names)[:_NAMED]) + more


def _of_system(error: OSError) -> RunFailure:
    """Tell what a disk says of the run's files from what it says of itself."""
    where = f"{error.filename!r}: " if error.filename else ""
    text = f"the run's files: {where}{error.strerror or error}"
    if error.errno in _SHORT:
        return RunFailure(ErrorCode.RESOURCE_LIMIT, text)
    if error.errno in _OF_FILES:
        return RunFailure(ErrorCode.START_FAILED, text, retried=False)
    return RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, text)
