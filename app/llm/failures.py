"""Why a call of a model failed: one classifier for HTTP statuses and for errors inside of a stream.

ModelFailure          code, message, and whether trying again may help
├── ModelUnavailable  no connection, 408, 429, 5xx, an error within the stream, a cut or silent stream
├── ModelRejected     400, 401, 403, 404 …: the request or the settings are wrong
├── ContextOverflow   the conversation is too long for the model
└── PauseAsked        the server wants a pause that is longer than a worker should wait

Servers name the same thing in many ways, so the words of their messages are looked at too. Only
substrings are searched, in the first 4 000 characters: what a server sends is not ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, cast

from app.core.clock import now_us
from app.llm.model import TokenUsage
from tailrun.process.errors import ErrorCode

LONGEST_WAIT_S = 20.0
"""A longer pause is the caller's: it gives the run back and frees the worker."""
_LONGEST_PAUSE_S = 86_400.0
_MOST_TEXT, _MOST_SHOWN = 4_000, 600
_SECONDS = 1_000_000

_OVERFLOW = (
    *("context_length_exceeded", "maximum context length", "context length", "context window"),
    *("exceed_context_size", "prompt is too long", "input is too long", "too many tokens"),
    *("reduce the length", "maximum number of tokens"),
)
_TOO_LARGE = ("request_too_large", "request too large")
"""Also said with a 429, where the request alone is over the limit of a minute: no pause helps."""
_NO_CREDIT = ("insufficient_quota", "credit balance", "billing", "insufficient balance", "payment required")
_NO_TOOLS = (
    "not support tool",
    "tool use is not supported",
    "tools is not supported",
    "tool choice requires",
)
_STATUS_OF = {
    "authentication_error": 401,
    "billing_error": 402,
    "context_length_exceeded": 400,
    "invalid_api_key": 401,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "overloaded_error": 529,
    "permission_error": 403,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "request_too_large": 413,
}
"""What a type or code of an error within a stream would have been as a status; others are temporary."""
_TEMPORARY = frozenset({408, 409, 425, 429})
_TOO_LONG = frozenset({400, 413, 422})
_OVERLOADED = frozenset({429, 503, 529})
_ADVICE = {
    401: "Is LLM_KEY right?",
    402: "The account has no credit.",
    403: "Is LLM_KEY allowed to use this model?",
    404: "Are LLM_URL (usually it ends in /v1) and LLM_MODEL right?",
    405: "Is LLM_URL right (usually it ends in /v1)?",
    407: "The proxy wants a login: LLM_PROXY takes one.",
    413: "The request is larger than the server takes.",
}
_REDIRECTED = "LLM_URL leads to another address, which is not followed: set that one."


class ModelFailure(Exception):
    """A call of a model failed; the message says what to do where something can be done."""

    code = ErrorCode.MODEL_UNAVAILABLE
    retried = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.wasted = TokenUsage()
        """What the tries took that broke off, as an estimate."""


class ModelUnavailable(ModelFailure):
    """Trying again may help. `retry_after_s` is what the server asked for."""

    code, retried = ErrorCode.MODEL_UNAVAILABLE, True

    def __init__(self, message: str, *, retry_after_s: float | None = None, gate: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.gate = gate
        """Whether the server is overloaded, so that other calls of this model should wait too."""


class ModelRejected(ModelFailure):
    """The same request will fail again. `status` and `text` are the server's, if it answered."""

    code = ErrorCode.MODEL_REJECTED

    def __init__(self, message: str, *, status: int | None = None, text: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.text = text


class ContextOverflow(ModelFailure):
    """The conversation is too long for the model."""

    code = ErrorCode.CONTEXT_OVERFLOW


class PauseAsked(ModelFailure):
    """The server asked for a pause of more than 20 s. Nothing was generated."""

    code = ErrorCode.MODEL_UNAVAILABLE

    def __init__(self, message: str, pause_s: float) -> None:
        super().__init__(message)
        self.pause_s = pause_s


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a server said when it refused: a status, its own words, and the body's code or type."""

    status: int
    text: str
    code: str = ""
    retry_after_s: float | None = None

    @property
    def words(self) -> str:
        """All that may name the cause, in small letters."""
        return f"{self.code} {self.text}"[:_MOST_TEXT].lower()

    def failure(self) -> ModelFailure:
        """Return what it means."""
        words, said = self.words, f"the model's server answered {self.status}: {_short(self.text)}"
        too_long = self.status in _TOO_LONG and _names(words, _OVERFLOW)
        if too_long or (self.status < 500 and _names(words, _TOO_LARGE)):  # noqa: PLR2004 - the class of statuses
            return ContextOverflow(f"The conversation is too long for the model; {said}")
        if self.status == 429 and _names(words, _NO_CREDIT):  # noqa: PLR2004 - the status that some use for it
            return ModelRejected(f"The account has no credit; {said}", status=self.status, text=self.text)
        if self.status in _TEMPORARY or self.status >= 500:  # noqa: PLR2004 - the class of statuses
            return self._temporary(said)
        advice = _ADVICE.get(self.status, "" if self.status >= 400 else _REDIRECTED)  # noqa: PLR2004
        if _names(words, _NO_TOOLS):
            advice = "This model takes no tools: choose another (LLM_MODEL)."
        text = f"{said[0].upper()}{said[1:]}"
        return ModelRejected(f"{text} {advice}".strip(), status=self.status, text=self.text)

    def _temporary(self, said: str) -> ModelFailure:
        pause = self.retry_after_s
        if pause is not None and pause > LONGEST_WAIT_S:
            return PauseAsked(f"The model's server asks for a pause of {pause:.0f} s; {said}", pause)
        return ModelUnavailable(
            f"{said[0].upper()}{said[1:]}", retry_after_s=pause, gate=self.status in _OVERLOADED
        )


def of_status(status: int, headers: Any, body: str) -> Refusal:
    """Read an answer that is an error; `headers` is any mapping that ignores case."""
    text, code = _said(body)
    return Refusal(status, text, code, retry_after(headers))


def of_stream(error: Any) -> ModelFailure:
    """Read the error of an event within a stream that began well: an object, or only a text."""
    if not isinstance(error, dict):
        return Refusal(500, str(error)).failure()
    found = cast("dict[str, Any]", error)
    names = [str(found.get(key) or "") for key in ("code", "type", "status")]
    numbers = [int(name) for name in names if name.isascii() and name.isdigit() and len(name) == 3]  # noqa: PLR2004
    status = next(iter(numbers), 0) or next((_STATUS_OF[name] for name in names if name in _STATUS_OF), 500)
    text = str(found.get("message") or "no reason given")
    refusal = Refusal(status, text, " ".join(names))
    if status >= 500 and _names(refusal.words, _OVERFLOW + _TOO_LARGE):  # noqa: PLR2004 - the class of statuses
        refusal = Refusal(400, text, refusal.code)
    return refusal.failure()


def retry_after(headers: Any) -> float | None:
    """Return the pause that an answer asks for, in seconds; None if it asks for none, or unreadably."""
    exact = _number(headers.get("retry-after-ms"))
    if exact is not None:
        return min(exact / 1000, _LONGEST_PAUSE_S)
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is None and text:
        try:
            seconds = parsedate_to_datetime(str(text)).timestamp() - now_us() / _SECONDS
        except (ValueError, OverflowError):
            return None
    return None if seconds is None else max(0.0, min(seconds, _LONGEST_PAUSE_S))


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if 0 <= value < float("inf") else None


def _said(body: str) -> tuple[str, str]:
    """Find the message and the code of an error's body, whatever its shape."""
    import orjson  # noqa: PLC0415 - only where something failed

    try:
        found: Any = orjson.loads(body)
    except ValueError:
        return body, ""
    if isinstance(found, list) and found:
        found = found[0]  # Gemini's compatible endpoint wraps it so
    inner = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(inner, dict):
        return str(inner), ""
    named = cast("dict[str, Any]", inner)
    code = " ".join(str(named[key]) for key in ("code", "type", "status") if named.get(key))
    message = named.get("message") or named.get("detail") or body
    if named.get("param"):
        message = f"{message} (param: {named['param']})"
    return str(message), code


def _names(words: str, any_of: tuple[str, ...]) -> bool:
    return any(each in words for each in any_of)


def _short(text: str) -> str:
    line = " ".join(text[:_MOST_TEXT].split())
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}…"
