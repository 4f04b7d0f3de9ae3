"""The nouns of Tailrun: Run, Job, Event, Step and their states. Pure: no I/O, no clock.

Times are integers, microseconds since the Unix epoch in UTC, everywhere inside the
program and in the database; `format_ts` turns them into RFC 3339 at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_US, _LAST_US = (
    (moment - _EPOCH) // timedelta(microseconds=1)
    for moment in (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
)


class RunStatus(StrEnum):
    """State of a run; `docs/state_machine.md` draws the transitions."""

    CREATED = "created"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"

    @property
    def terminal(self) -> bool:
        """Whether the run has ended for ever."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.TIMED_OUT},
)


class RunKind(StrEnum):
    """What a run was made from."""

    PROMPT = "prompt"
    STEPS = "steps"
    ARGV = "argv"
    TASK = "task"


class Priority(StrEnum):
    """At which end of the queue a run's entry comes in."""

    HIGH = "high"
    NORMAL = "normal"


class StepStatus(StrEnum):
    """State of one step of a run."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"

    @property
    def finished(self) -> bool:
        """Whether a later attempt takes this record as it stands."""
        return self is not StepStatus.RUNNING


class EventType(StrEnum):
    """Type of an event in a run's stream."""

    LOG = "log"
    STEP = "step"
    STATUS = "status"
    USAGE = "usage"
    ARTIFACT = "artifact"
    APPROVAL = "approval"
    TRUNCATED = "truncated"
    GAP = "gap"
    END = "end"


NEVER_FILTERED = frozenset({EventType.END, EventType.GAP, EventType.TRUNCATED})
"""Event types that no `level` or `stream` filter hides."""


class Level(StrEnum):
    """Severity of a log line, lowest first."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Stream(StrEnum):
    """Where a line came from: the program's two pipes, or Tailrun itself."""

    STDOUT = "stdout"
    STDERR = "stderr"
    SYSTEM = "system"


class Line(NamedTuple):
    """One line of a program's output, without its line end.

    `cr` marks a progress update (ended by a carriage return: a later one replaces it),
    `split` a piece of a line that was too long and goes on in the next piece. A tuple, because
    one is made for every line that is printed: a frozen dataclass costs three times as much.
    `src` is where the line was in the program's own log, if there is one to go on reading from:
    it is committed with the line, so that whoever goes on knows from where.
    """

    stream: Stream
    content: str
    level: Level = Level.INFO
    cr: bool = False
    split: bool = False
    src: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a run's stream, and one row of `log_lines`.

    `seq` counts from 1 within the run; `ts` is in microseconds; `data` holds the fields
    that only this type has (`status`, `exit_code`, `error`, `from`, `to`, `path` …).
    """

    seq: int
    type: EventType
    ts: int
    run_id: str
    attempt: int
    level: Level | None = None
    stream: Stream | None = None
    step: str | None = None
    content: str | None = None
    data: dict[str, Any] = field(default_factory=dict[str, Any])

    def as_dict(self) -> dict[str, Any]:
        """Return the wire shape, `seq` first, absent fields left out."""
        body: dict[str, Any] = {
            "seq": self.seq,
            "type": self.type,
            "ts": format_ts(self.ts),
            "run_id": self.run_id,
            "attempt": self.attempt,
        }
        if self.level is not None:
            body["level"] = self.level
        if self.stream is not None:
            body["stream"] = self.stream
        if self.step is not None:
            body["step"] = self.step
        if self.content is not None:
            body["content"] = self.content
        if self.data:
            body.update(self.data)
        return body

    def encode(self) -> bytes:
        """Return the wire shape as one line of JSON, without a line end."""
        return orjson.dumps(self.as_dict())

    @classmethod
    def decode(cls, raw: bytes | str) -> Event:
        """Read the wire shape back; unknown fields land in `data`."""
        body: dict[str, Any] = orjson.loads(raw)
        level, stream = body.pop("level", None), body.pop("stream", None)
        return cls(
            seq=body.pop("seq"),
            type=EventType(body.pop("type")),
            ts=parse_ts(body.pop("ts")),
            run_id=body.pop("run_id"),
            attempt=body.pop("attempt"),
            level=Level(level) if level is not None else None,
            stream=Stream(stream) if stream is not None else None,
            step=body.pop("step", None),
            content=body.pop("content", None),
            data=body,
        )


@dataclass(frozen=True, slots=True)
class Wants:
    """Where and with how much a step's program is to run; None: as the deployment says.

    `image` is a container image, `cpu` and `memory` are Kubernetes quantities, `network` is
    `none` or `internet`.
    """

    image: str | None = None
    cpu: str | None = None
    memory: str | None = None
    network: str | None = None

    def __bool__(self) -> bool:
        """Whether anything is wanted."""
        return any((self.image, self.cpu, self.memory, self.network))


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan, already checked against the catalogue."""

    id: str
    tool: str
    args: dict[str, Any]
    timeout_s: float | None = None
    continue_on_error: bool = False
    wants: Wants = field(default_factory=Wants)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What became of one step; a row of `steps`."""

    run_id: str
    step_id: str
    idx: int
    tool: str
    args: dict[str, Any]
    status: StepStatus
    attempt: int
    started_at: int
    ended_at: int | None = None
    exit_code: int | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run as its row stands. Only `app.db.run_store` makes or changes one."""

    run_id: str
    user_id: str
    kind: RunKind
    status: RunStatus
    spec: dict[str, Any]
    created_at: int
    attempt: int = 0
    worker_id: str | None = None
    planner: str | None = None
    retries: int = 0
    redeliveries: int = 0
    max_attempts: int = 3
    timeout_s: float = 3600
    queued_at: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    next_attempt_at: int | None = None
    cancel_requested_at: int | None = None
    exit_code: int | None = None
    error: dict[str, Any] | None = None
    log_lines: int = 0
    log_size: int = 0
    truncated: bool = False
    last_seq: int = 0
    labels: dict[str, str] = field(default_factory=dict[str, str])
    retry_of: str | None = None
    workspace_from: str | None = None
    project: str | None = None
    type: str | None = None
    priority: Priority = Priority.NORMAL
    retry_on: list[str] | None = None
    run_at: int | None = None
    webhook_url: str | None = None


@dataclass(frozen=True, slots=True)
class Fence:
    """Who may write to a run: every write of an attempt is conditional on all three."""

    run_id: str
    attempt: int
    worker_id: str


@dataclass(frozen=True, slots=True)
class Job:
    """An entry of `jobs:pending`. A hint: only its `run_id` counts, the row decides.

    `priority` says at which end it comes in; the queue never looks further.
    """

    run_id: str
    user_id: str = ""
    kind: str = ""
    project: str | None = None
    type: str | None = None
    attempt: int = 0
    enqueued_at: str = ""
    priority: str = Priority.NORMAL

    @classmethod
    def of(cls, run: Run, now: int) -> Job:
        """Make the entry of `run`, enqueued at `now`."""
        return cls(
            run.run_id,
            run.user_id,
            run.kind,
            run.project,
            run.type,
            run.attempt,
            format_ts(now),
            run.priority,
        )

    def encode(self) -> bytes:
        """Return the entry as it stands in Redis."""
        return orjson.dumps(
            {
                "run_id": self.run_id,
                "user_id": self.user_id,
                "kind": self.kind,
                "project": self.project,
                "type": self.type,
                "attempt": self.attempt,
                "enqueued_at": self.enqueued_at,
                "priority": self.priority,
            },
        )


@lru_cache(maxsize=8)
def _second(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).replace(tzinfo=None).isoformat()


def format_ts(us: int) -> str:
    """Format microseconds as RFC 3339 with six decimals and `Z`.

    Years have four digits there: what lies before 1 or after 9999 shows as the first or the last moment.
    """
    second, rest = divmod(max(_FIRST_US, min(us, _LAST_US)), 1_000_000)
    return f"{_second(second)}.{rest:06d}Z"


def parse_ts(text: str) -> int:
    """Read an RFC 3339 time (a zone is required) into microseconds.

    ValueError if it is none, or if it is before the year 1 or after 9999 in UTC, where it can't be written.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        message = f"{text!r} has no time zone"
        raise ValueError(message)
    us = (moment - _EPOCH) // timedelta(microseconds=1)
    if not _FIRST_US <= us <= _LAST_US:
        message = f"{text!r} is not within the years 1 to 9999 in UTC"
        raise ValueError(message)
    return us
