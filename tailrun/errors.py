"""The errors between a client and the API, one class for each thing a caller may do about it.

TailrunError
├── Unusable           nothing was sent: no URL, no token, or a file that changed under our hands
├── Unreachable        no answer: wrong URL, server down, network gone
└── APIError           the API said no: `status`, `code`, `message` as it sent them
    ├── Unauthorized       401  the token is missing, wrong, expired or revoked
    ├── Forbidden          403  the token's scope does not allow it
    ├── NotFound           404  no such thing, or it is another user's
    ├── Conflict           409  the run is not in a state that allows it
    ├── TooLarge           413  over a size limit
    ├── Invalid            400, 405, 416, 422  the request itself is wrong
    ├── TooManyRequests    429  try again after `retry_after_s`
    └── ServerError        5xx  the server failed or is not ready
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast


class TailrunError(Exception):
    """Anything that this client raises on purpose."""


class Unusable(TailrunError):
    """What the caller gave cannot be sent: an address, a token, a file."""


class Unreachable(TailrunError):
    """The API did not answer."""


class APIError(TailrunError):
    """The API answered with an error."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class Unauthorized(APIError):
    """The token is missing, wrong, expired or revoked."""


class Forbidden(APIError):
    """The token's scope does not allow this."""


class NotFound(APIError):
    """No such thing, or it is another user's."""


class Conflict(APIError):
    """The run is not in a state that allows this."""


class TooLarge(APIError):
    """The body or the file is over its limit."""


class Invalid(APIError):
    """The request itself is wrong."""


class TooManyRequests(APIError):
    """A limit is reached; try again after `retry_after_s`."""


class ServerError(APIError):
    """The server failed, or something that it needs is away."""


_BY_STATUS: dict[int, type[APIError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: Invalid,
    409: Conflict,
    413: TooLarge,
    416: Invalid,
    422: Invalid,
    429: TooManyRequests,
}


def error_of(status: int, body: bytes, headers: Mapping[str, str]) -> APIError:
    """Make the error of an answer; a body that is not ours (a proxy's page) still gives a message."""
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else APIError)  # noqa: PLR2004
    code, message = _read(body)
    return kind(
        status,
        code or f"http_{status}",
        message or f"the server answered {status}",
        _seconds(headers.get("retry-after")),
    )


def _read(body: bytes) -> tuple[str | None, str | None]:
    try:
        parsed: Any = json.loads(body)
    except ValueError:
        return None, body[:200].decode(errors="replace").strip() or None
    error: Any = cast("dict[str, Any]", parsed).get("error") if isinstance(parsed, dict) else None
    if not isinstance(error, dict):
        return None, None
    fields = cast("dict[str, Any]", error)
    return fields.get("code"), fields.get("message")


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdigit() else None
