"""The nouns of Tailrun: Run, Job, Event, Step and their states. Pure: no I/O, no clock.

Times are integers, microseconds since the Unix epoch in UTC, everywhere inside the
program and in the database; `format_ts` turns them into RFC 3339 at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

import orjson

from app.core.clock import format_ts


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
        """Whether the run has ended."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.TIMED_OUT},
)


class RunKind(StrEnum):
    """The form in which a run was asked for."""

    PROMPT = "prompt"
    STEPS = "steps"
    ARGV = "argv"
    TASK = "task"


class Priority(StrEnum):
    """At which end of the queue a run's entry comes in."""

    HIGH = "high"
    NORMAL = "normal"


class StepStatus(StrEnum):
    """State of one step of a run; those of an agent have four more.

    `proposed`: the model asked for it, and nothing has begun. `waiting`: it has to be approved.
    `refused`: it never runs. `interrupted`: its worker ended, and it is not started again.
    """

    PROPOSED = "proposed"
    WAITING = "waiting"
    RUNNING = "running"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"

    @property
    def finished(self) -> bool:
        """Whether a later attempt takes this record unchanged."""
        return self not in _UNFINISHED


_UNFINISHED = frozenset({StepStatus.PROPOSED, StepStatus.WAITING, StepStatus.RUNNING})


@dataclass(frozen=True, slots=True)
class ResourceRequest:
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
    wants: ResourceRequest = field(default_factory=ResourceRequest)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The record of one step; a row of `steps`.

    Of an agent: `call` is the number of the model call that asked for it, `call_id` the id that the model
    gave it, `policy` the rule that let it run or not, `for_model` what the model is told of it.
    """

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
    call: int | None = None
    call_id: str | None = None
    policy: str | None = None
    for_model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDefinition:
    """What a run is made of, as its maker said: a schedule keeps it, and a retry takes it over whole.

    `agent` is what was asked of the agent: its model, tools and budget.
    """

    kind: RunKind
    spec: dict[str, Any]
    max_attempts: int = 3
    timeout_s: float = 3600
    labels: dict[str, str] = field(default_factory=dict[str, str])
    workspace_from: str | None = None
    project: str | None = None
    type: str | None = None
    priority: Priority = Priority.NORMAL
    retry_on: list[str] | None = None
    webhook_url: str | None = None
    agent: dict[str, Any] | None = None

    def definition(self) -> dict[str, Any]:
        """Return these fields alone, by name."""
        return {name: getattr(self, name) for name in DEFINITION_FIELDS}


DEFINITION_FIELDS = tuple(field.name for field in fields(RunDefinition))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(RunDefinition):
    """A run as its row has it, a column for each field. Only `app.db` makes or changes one.

    Of an agent: `result` is its answer; `spent_u` (millionths of a US dollar, of the calls whose price is
    known) and `spent_tokens` count what its model calls took, and what those on their way have reserved.
    `waiting_for` says what a run that is `waiting` waits for.
    """

    run_id: str
    user_id: str
    status: RunStatus
    created_at: int
    attempt: int = 0
    worker_id: str | None = None
    planner: str | None = None
    retries: int = 0
    redeliveries: int = 0
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
    retry_of: str | None = None
    run_at: int | None = None
    result: dict[str, Any] | None = None
    spent_u: int = 0
    spent_tokens: int = 0
    waiting_for: str | None = None


@dataclass(frozen=True, slots=True)
class Fence:
    """The owner of a run: every write of an attempt is conditional on all three."""

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
        """Return the entry as it is in Redis."""
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
