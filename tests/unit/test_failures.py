"""Whose fault an error is: what the run's own files and limits do is not told as infrastructure."""

from __future__ import annotations

import errno
import os

import pytest

from app.agent.tools.failures import failure_of, named
from app.core.errors import Conflict, NotFound, StorageError, TooLarge, Unprocessable
from tailrun.process.errors import ErrorCode

OWN = ["EACCES", "EPERM", "ENAMETOOLONG", "ELOOP", "ENOTDIR", "EISDIR", "ENOENT", "EEXIST", "EINVAL"]


@pytest.mark.parametrize("before_a_step", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        TooLarge("over"),
        Unprocessable("odd"),
        Conflict("in the way"),
        NotFound("gone"),
        *(OSError(getattr(errno, name), os.strerror(getattr(errno, name)), "f") for name in OWN),
    ],
    ids=repr,
)
def test_a_fault_of_the_runs_own_is_final(error: OSError, before_a_step: bool) -> None:
    failure = failure_of(error, before_a_step=before_a_step)
    assert not failure.retried
    assert not failure.away
    assert failure.code not in {ErrorCode.EXECUTOR_UNAVAILABLE, ErrorCode.WORKER_LOST}


def test_a_store_that_is_away_is_waited_for() -> None:
    failure = failure_of(StorageError("connection refused"))
    assert (failure.code, failure.retried, failure.away) == (ErrorCode.EXECUTOR_UNAVAILABLE, True, True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.ENOMEM])
def test_what_this_machine_is_short_of_another_attempt_may_find(number: int) -> None:
    failure = failure_of(OSError(number, os.strerror(number)))
    assert (failure.code, failure.retried) == (ErrorCode.RESOURCE_LIMIT, True)


def test_a_broken_disk_is_infrastructure() -> None:
    assert failure_of(OSError(errno.EIO, "I/O error")).code is ErrorCode.EXECUTOR_UNAVAILABLE


def test_many_names_are_shown_in_part() -> None:
    assert named(list("cab")) == "'a', 'b', 'c'"
    assert named([str(n) for n in range(9)]).endswith("'4' and 4 more")
