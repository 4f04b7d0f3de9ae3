"""The shapes that go in and out over HTTP, with examples: what OpenAPI shows.

Bodies that come in are checked against the models here, strictly: no unknown field and no
silent conversion. What goes out is only described by them (`app.routes.views` makes it), so
that an answer costs one JSON encoding and no validation.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SkipValidation

from app.catalogue import StepIn
from app.catalogue_errors import quote
from app.errors import ErrorCode, Unprocessable
from app.models import EventType, Level, Priority, RunKind, RunStatus, StepStatus, Stream, parse_ts
from app.variables import check_env

MAX_PROMPT = 100_000
MAX_ARGV_BYTES = 100_000
MAX_ENV_BYTES = 32_000
RETRY_CODES = [code.value for code in ErrorCode if code not in {ErrorCode.CANCELLED, ErrorCode.WORKER_LOST}]
"""What `retry_on` may hold: a cancel is final, and a lost worker has a limit of its own."""
RUN_EXAMPLE = "0b5c8a52-5c0e-4a55-9d0c-7f4f3f6e2a11"
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def _prompt(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def _argv(value: list[str]) -> list[str]:
    if not value or not value[0]:
        raise ValueError("must begin with the name of a program")
    if sum(len(word.encode()) for word in value) > MAX_ARGV_BYTES:
        raise ValueError(f"must be at most {MAX_ARGV_BYTES} bytes long in all")
    return value


def _labels(value: dict[str, str]) -> dict[str, str]:
    for key, text in value.items():
        if not 1 <= len(key) <= 63 or len(text) > 255 or "\0" in key + text:  # noqa: PLR2004
            raise ValueError("must have keys of 1 to 63 and values of at most 255 characters, without NUL")
    return value


def _env(value: dict[str, str]) -> dict[str, str]:
    try:
        check_env(value)
    except Unprocessable as error:
        raise ValueError(error.message.removeprefix("env: ")) from error
    if sum(len(name) + len(text.encode()) for name, text in value.items()) > MAX_ENV_BYTES:
        raise ValueError(f"must be at most {MAX_ENV_BYTES} bytes long in all")
    return value


def _retry_on(value: list[str]) -> list[str]:
    for code in value:
        if code not in RETRY_CODES:
            raise ValueError(f"must hold codes of {', '.join(RETRY_CODES)}, not {quote(code)}")
    return sorted(set(value))


def _moment(value: str) -> str:
    if _RFC_3339.fullmatch(value):
        with suppress(ValueError, OverflowError):
            parse_ts(value.upper())
            return value
    raise ValueError(f"must be a time with a zone, such as 2026-11-20T12:00:00Z, not {quote(value)}")


def _user(value: str) -> str:
    if not _USER.fullmatch(value):
        raise ValueError("must be 1 to 63 letters, digits, '.', '_', '@' or '-', the first a letter or digit")
    return value


class Body(BaseModel):
    """A body that comes in: strict, nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True)


Text = Annotated[str, AfterValidator(_no_nul)]
Name = Annotated[Text, Field(min_length=1, max_length=200)]


class RunFields(Body):
    """What a run is made of: exactly one of `prompt`, `steps`, `type` and `argv`."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_prompt)] | None = Field(
        default=None,
        description="What to do, in words; or a fenced block of steps in YAML or JSON.",
    )
    steps: Annotated[list[StepIn], SkipValidation] | None = Field(
        default=None, description="What to do, step by step."
    )
    argv: Annotated[list[Text], Field(min_length=1, max_length=1000), AfterValidator(_argv)] | None = Field(
        default=None, description="One program and its arguments, run in the workspace without a shell."
    )
    type: Name | None = Field(default=None, description="A task type; GET /v1/task-types lists them.")
    command: Name | None = Field(default=None, description="With `type`: which command of the task type.")
    params: dict[str, Any] | None = Field(default=None, description="With `type`: the task's parameters.")
    project: Name | None = Field(
        default=None, description="With `type`: whose configuration the program gets; `default` if left out."
    )
    labels: Annotated[dict[str, str], Field(max_length=16), AfterValidator(_labels)] = Field(
        default_factory=dict[str, str],
        description="At most 16 names and values of your own, 63 and 255 characters long.",
    )
    env: Annotated[dict[str, str], Field(max_length=64), AfterValidator(_env)] = Field(
        default_factory=dict[str, str],
        description="Environment of the run's programs; never shown again.",
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that one attempt may take; at most, and if left out, `JOB_TIMEOUT_S`.",
    )
    max_attempts: int | None = Field(
        default=None, ge=1, le=20, description="1 + retries after a failure; left out: `JOB_MAX_ATTEMPTS`."
    )
    retry_on: Annotated[list[str], Field(max_length=50), AfterValidator(_retry_on)] | None = Field(
        default=None,
        description="Error codes after which the run is tried again, no others; left out: the usual ones.",
        examples=[["exit_nonzero", "timeout"]],
    )
    run_at: Annotated[str, Field(max_length=40), AfterValidator(_moment)] | None = Field(
        default=None,
        description="Not before this time (RFC 3339), at most a year ahead; one that is past is at once.",
        examples=["2026-11-20T12:00:00Z"],
    )
    priority: Literal["high", "normal"] = Field(
        default="normal", description="`high` goes to the front of the queue: it is taken next."
    )
    webhook_url: Text | None = Field(
        default=None,
        description="Where to POST a signed message once the run has ended; needs `WEBHOOK_SECRET`.",
        examples=["https://example.com/hooks/tailrun"],
    )
    workspace_from: str | None = Field(
        default=None, description="A run of yours whose files the new run starts with."
    )


class NewRun(RunFields):
    """Body of `POST /v1/runs`."""

    start: bool = Field(default=True, description="False holds the run as `created` until it is started.")


class ExecuteCreate(RunFields):
    """Makes a run and holds it, as `created`."""

    action: Literal["create"]


class ExecuteOn(Body):
    """Starts a held run, cancels a run, or shows it."""

    action: Literal["start", "cancel", "status"]
    run_id: str = Field(examples=[RUN_EXAMPLE])


class NewTask(Body):
    """Body of `POST /tasks`."""

    project: Name
    type: Name
    command: Name | None = None
    params: dict[str, Any] = Field(default_factory=dict[str, Any])
    timeout_s: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="As of `POST /v1/runs`."
    )
    webhook_url: Text | None = Field(default=None, description="As of `POST /v1/runs`.")


class NewOperation(Body):
    """Body of `POST /api/v1/operations`."""

    app_signature: Name
    operation_request_json: str = Field(
        description="The request as a string of JSON.", examples=['{"permission_id": 4096}']
    )


class NewToken(Body):
    """Body of `POST /v1/tokens`."""

    user_id: Annotated[str, AfterValidator(_user)] = Field(
        description="Whose runs the token opens; it is part of the path of their files.",
        examples=["ada"],
    )
    scope: Literal["user", "admin"] = "user"
    name: Annotated[Text, Field(max_length=200)] = Field(default="", description="What the token is for.")
    expires_in_s: int | None = Field(
        default=None, ge=1, le=315_360_000, description="Life in seconds; left out: until it is revoked."
    )


class RunError(BaseModel):
    """Why a run did not succeed."""

    code: str = Field(examples=["exit_nonzero"])
    message: str
    step: str | None = None


class RunView(BaseModel):
    """A run. Times are RFC 3339 with microseconds, in UTC."""

    run_id: str = Field(examples=[RUN_EXAMPLE])
    user_id: str
    kind: RunKind
    planner: str | None = Field(description="What made the plan; `smoke`: no model is configured.")
    status: RunStatus
    attempt: int = Field(description="How often a worker took the run.")
    retries: int
    redeliveries: int
    max_attempts: int
    timeout_s: float
    created_at: str = Field(examples=["2026-11-20T12:00:00.123456Z"])
    queued_at: str | None
    started_at: str | None
    ended_at: str | None
    next_attempt_at: str | None
    cancel_requested_at: str | None
    exit_code: int | None
    error: RunError | None
    log_lines: int
    log_size: int
    truncated: bool
    last_seq: int
    labels: dict[str, str]
    retry_of: str | None
    workspace_from: str | None
    project: str | None
    type: str | None
    priority: Priority
    retry_on: list[str] | None
    run_at: str | None
    webhook_url: str | None
    links: dict[str, str]


class EventView(BaseModel):
    """One event of a run's stream; other fields depend on the type."""

    model_config = ConfigDict(extra="allow")

    seq: int
    type: EventType
    ts: str
    run_id: str
    attempt: int
    level: Level | None = None
    stream: Stream | None = None
    step: str | None = None
    content: str | None = None


class RunDetail(RunView):
    """A run with what it was made from, and with its last events if `logs` asked for them."""

    spec: dict[str, Any] = Field(
        description="What was sent: `prompt`, `steps`, `argv` or `type`; never the `env`."
    )
    logs: list[EventView] | None = None


class TaskView(RunView):
    """A run under the name of a task."""

    task_id: str


class OperationView(RunView):
    """A run under the name of an operation, with the last lines that it printed."""

    operation_id: str
    logs: list[str]


class RunList(BaseModel):
    """One page of runs, newest first."""

    items: list[RunView]
    next: str | None = Field(description="Send it as `cursor` for the next page; null: there is none.")


class LogPage(BaseModel):
    """One page of events in ascending `seq`."""

    events: list[EventView]
    next_after: int | None = Field(description="Send it as `after`; null: the run ended and this was all.")


class StepView(BaseModel):
    """What became of one step."""

    id: str
    idx: int
    tool: str
    args: dict[str, Any]
    status: StepStatus
    attempt: int
    started_at: str
    ended_at: str | None
    exit_code: int | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None


class StepList(BaseModel):
    """All steps that were begun, in order."""

    items: list[StepView]
    next: None = None


class TokenView(BaseModel):
    """A token, without its secret."""

    token_id: str
    user_id: str
    scope: Literal["user", "admin"]
    name: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class TokenList(BaseModel):
    """All tokens of people; stream tokens are not listed."""

    items: list[TokenView]
    next: None = None


class TokenMade(TokenView):
    """A new token. `token` is shown this once and stored nowhere."""

    token: str


class StreamTokenMade(BaseModel):
    """A short-lived token that reads the stream of one run; for browsers' EventSource."""

    token: str
    expires_at: str
    url: str = Field(examples=[f"/v1/runs/{RUN_EXAMPLE}/stream?access_token=…"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """Whether everything that is needed answers, and what does not."""

    ready: bool
    checks: dict[str, str] = Field(
        examples=[{"database": "ok", "redis": "failed"}],
        description="`ok`, or `failed`: an admin is told why.",
    )
    remarks: list[str] = Field(
        description="What is no reason to be not ready, but should be known of the Redis server. For admins."
    )


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str = Field(examples=["not_found"])
    message: str = Field(examples=["There is no run '…'."])


class ErrorView(BaseModel):
    """Every error has this shape."""

    error: ErrorBody
