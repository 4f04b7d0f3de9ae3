"""The shapes that go in and out over HTTP, with examples: what OpenAPI shows.

Bodies that come in are checked against the models here, strictly: no unknown field and no
silent conversion. What goes out is only described by them (`app.routes.views` makes it), so
that an answer costs one JSON encoding and no validation.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.core.agent_records import WaitingFor
from app.core.events import EventType
from app.core.models import Priority, RunKind, RunStatus, StepStatus
from app.plan.run_fields import (
    RUN_EXAMPLE,
    Body,
    Name,
    RunFields,
    Text,
)
from tailrun.process.lines import Level, Stream

_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")


def _user(value: str) -> str:
    if not _USER.fullmatch(value):
        raise ValueError("must be 1 to 63 letters, digits, '.', '_', '@' or '-', the first a letter or digit")
    return value


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


class RunUsage(BaseModel):
    """What the model calls of a run took, with what those on their way have reserved."""

    tokens: int
    cost_usd: float | None = Field(description="Of the calls whose price is known; null: of none.")


class RunView(BaseModel):
    """A run. Times are RFC 3339 with microseconds, in UTC."""

    run_id: str = Field(examples=[RUN_EXAMPLE])
    user_id: str
    kind: RunKind
    planner: str | None = Field(description="What made the plan; `smoke`: one that leaves the prompt aside.")
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
    waiting_for: WaitingFor | None = Field(description="What a run that is `waiting` waits for.")
    result: dict[str, Any] | None = Field(description="The answer of an agent.")
    usage: RunUsage | None = Field(description="What an agent has spent so far; null: no model was called.")
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
    agent: dict[str, Any] | None = Field(description="What was asked of the agent.")
    logs: list[EventView] | None = None


class ExecuteView(RunDetail):
    """A run, with a warning where a prompt is not carried out."""

    warning: str | None = None


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

    token: str | None = Field(description="Null where the `Idempotency-Key` made it before: it is not kept.")


class StreamTokenMade(BaseModel):
    """A short-lived token that reads the stream of one run; for browsers' EventSource.

    `token` and `url` are null where the `Idempotency-Key` made it before: they are not kept.
    """

    token: str | None
    expires_at: str
    url: str | None = Field(examples=[f"/v1/runs/{RUN_EXAMPLE}/stream?access_token=…"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """Whether everything that is needed answers, and what does not."""

    ready: bool
    checks: dict[str, str] = Field(
        examples=[{"database": "ok", "redis": "failed", "files": "ok"}],
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
