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
├── Unavailable              503
└── StorageError             503: the database, Redis or another store does not answer just now
RunFailure                   why an attempt failed: an ErrorCode, which knows whether it is retried
LostOwnership                another attempt owns the run now: stop and write nothing
LogBroken                    the attempt cannot write the run's log: stop, the run is taken over later
"""

from __future__ import annotations


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
    """No such thing, or it is another user's."""

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


class StorageError(TailrunError):
    """A server that keeps things could not be reached; the caller tries again or answers 503.

    Its message may name that server, so it is for the log and not for who asked.
    """

    status, code = 503, "unavailable"


class LostOwnership(Exception):
    """Another attempt owns the run: stop the program, discard what is unwritten, write nothing."""


class LogBroken(Exception):
    """The run's log cannot be written: end this attempt and write nothing; the run is taken over later."""
