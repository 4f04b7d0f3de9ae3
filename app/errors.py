"""The error tree: every error that a user can meet has a code, a status and a next step.

TailrunError                 HTTP status, code, message
├── InvalidRequest           400
├── Unauthorized             401
├── Forbidden                403
├── NotFound                 404
├── Conflict                 409
├── TooLarge                 413
├── RangeNotSatisfiable      416
├── Unprocessable            422
├── TooManyRequests          429
└── Unavailable              503
RunFailure                   why an attempt failed: an ErrorCode, which knows whether it is retried
LostOwnership                another attempt owns the run now: stop and write nothing
StorageError                 the database or Redis could not be reached just now
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Any


class ErrorCode(StrEnum):
    """Why a run failed, as it stands in `error.code`."""

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

    @property
    def retried(self) -> bool:
        """Whether an attempt that failed so is tried again, unless the run says otherwise."""
        return self not in _FINAL


_FINAL = frozenset(
    {ErrorCode.EXIT_NONZERO, ErrorCode.TIMEOUT, ErrorCode.INVALID_PLAN, ErrorCode.CANCELLED},
)


class TailrunError(Exception):
    """Something the caller can act on; routes answer it as `{"error": {"code", "message"}}`."""

    status = 500
    code = "internal"

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code


class InvalidRequest(TailrunError):
    """The request could not be read."""

    status, code = 400, "invalid_request"


class Unauthorized(TailrunError):
    """No valid token came with the request."""

    status, code = 401, "unauthorized"


class Forbidden(TailrunError):
    """The token's scope does not allow this."""

    status, code = 403, "forbidden"


class NotFound(TailrunError):
    """No such thing, or it is somebody else's."""

    status, code = 404, "not_found"


class Conflict(TailrunError):
    """The thing is not in a state that allows this."""

    status, code = 409, "conflict"


class TooLarge(TailrunError):
    """The body or the file is over its limit."""

    status, code = 413, "too_large"


class RangeNotSatisfiable(TailrunError):
    """The byte range lies outside of the file."""

    status, code = 416, "range_not_satisfiable"


class Unprocessable(TailrunError):
    """The request was read, but what it asks for is not valid."""

    status, code = 422, "invalid"


class TooManyRequests(TailrunError):
    """A limit per user is reached; try again after `retry_after_s`."""

    status, code = 429, "too_many_requests"


class Unavailable(TailrunError):
    """A server that is needed does not answer just now."""

    status, code = 503, "unavailable"


class RunFailure(Exception):
    """An attempt failed. `retried` narrows the code's default: a missing program stays missing."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        step: str | None = None,
        exit_code: int | None = None,
        retried: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.step = step
        self.exit_code = exit_code
        self.retried = code.retried if retried is None else retried
        self._by_its_code = retried is None

    def retried_by(self, retry_on: Collection[str] | None) -> bool:
        """Whether a run with this `retry_on` (None: it does not say) tries again after the failure.

        What no other attempt can mend is final whatever the run says, and so is a cancel.
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


class LostOwnership(Exception):
    """Another attempt owns the run: stop the program, discard what is unwritten, write nothing."""


class StorageError(Exception):
    """The database or Redis could not be reached; the caller tries again or answers 503."""
