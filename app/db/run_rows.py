"""Between rows and the nouns of `app.core.models`: the one place that knows the order of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, literal

from app.core.models import Priority, Run, RunKind, RunStatus, StepRecord, StepStatus
from app.db.lenient import from_json, from_json_or_none, seconds, word
from app.db.tables import runs, steps
from app.db.text import clean, clean_or_none, to_json, to_json_or_none

RUN_COLUMNS = (
    *("run_id", "user_id", "kind", "status", "spec", "created_at", "attempt", "worker_id", "planner"),
    *("retries", "redeliveries", "max_attempts", "timeout_s", "queued_at", "started_at", "ended_at"),
    *("next_attempt_at", "cancel_requested_at", "exit_code", "error", "log_lines", "log_size"),
    *("truncated", "last_seq", "labels", "retry_of", "workspace_from", "project", "type"),
    *("priority", "retry_on", "run_at", "webhook_url"),
)
"""In the order of `Run`'s fields; every SELECT and RETURNING of whole runs uses it."""

RUN_SQL = ", ".join(RUN_COLUMNS)
WHOLE_RUN: list[ColumnElement[Any]] = [runs.c[name] for name in RUN_COLUMNS]
WITHOUT_SPEC: list[ColumnElement[Any]] = [
    literal("{}").label("spec") if name == "spec" else runs.c[name] for name in RUN_COLUMNS
]
"""For lists: a spec may hold megabytes."""

STEP_COLUMNS = (
    *("run_id", "step_id", "idx", "tool", "args", "status", "attempt", "started_at"),
    *("ended_at", "exit_code", "result", "error"),
)
"""In the order of `StepRecord`'s fields."""
WHOLE_STEP: list[ColumnElement[Any]] = [steps.c[name] for name in STEP_COLUMNS]


def to_run(row: Sequence[Any]) -> Run:
    """Make a `Run` from a row of `RUN_COLUMNS`, whatever it holds."""
    fields = dict(zip(RUN_COLUMNS, row, strict=True))
    fields["kind"] = word(RunKind, fields["kind"])
    fields["status"] = word(RunStatus, fields["status"])
    fields["spec"] = from_json(fields["spec"], {}, "runs.spec")
    fields["timeout_s"] = seconds(fields["timeout_s"])
    fields["error"] = from_json_or_none(fields["error"], {}, "runs.error")
    fields["labels"] = from_json(fields["labels"], {}, "runs.labels")
    fields["truncated"] = bool(fields["truncated"])
    fields["priority"] = word(Priority, fields["priority"])
    fields["retry_on"] = from_json_or_none(fields["retry_on"], [], "runs.retry_on")
    return Run(**fields)


def to_step(row: Sequence[Any]) -> StepRecord:
    """Make a `StepRecord` from a row of `STEP_COLUMNS`."""
    fields = dict(zip(STEP_COLUMNS, row, strict=True))
    fields["status"] = word(StepStatus, fields["status"])
    fields["args"] = from_json(fields["args"], {}, "steps.args")
    fields["result"] = from_json_or_none(fields["result"], {}, "steps.result")
    fields["error"] = from_json_or_none(fields["error"], {}, "steps.error")
    return StepRecord(**fields)


def step_values(record: StepRecord) -> tuple[Any, ...]:
    """Return the values of `STEP_COLUMNS`."""
    return (
        record.run_id,
        clean(record.step_id),
        record.idx,
        clean(record.tool),
        to_json(record.args),
        record.status.value,
        record.attempt,
        record.started_at,
        record.ended_at,
        record.exit_code,
        to_json_or_none(record.result),
        to_json_or_none(record.error),
    )


def run_values(run: Run) -> dict[str, Any]:
    """Return the values of `RUN_COLUMNS` by name, ready to be bound."""
    return {
        "run_id": run.run_id,
        "user_id": clean(run.user_id),
        "kind": run.kind.value,
        "status": run.status.value,
        "spec": to_json(run.spec),
        "created_at": run.created_at,
        "attempt": run.attempt,
        "worker_id": run.worker_id,
        "planner": clean_or_none(run.planner),
        "retries": run.retries,
        "redeliveries": run.redeliveries,
        "max_attempts": run.max_attempts,
        "timeout_s": float(run.timeout_s),
        "queued_at": run.queued_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "next_attempt_at": run.next_attempt_at,
        "cancel_requested_at": run.cancel_requested_at,
        "exit_code": run.exit_code,
        "error": to_json_or_none(run.error),
        "log_lines": run.log_lines,
        "log_size": run.log_size,
        "truncated": run.truncated,
        "last_seq": run.last_seq,
        "labels": to_json(run.labels),
        "retry_of": clean_or_none(run.retry_of),
        "workspace_from": clean_or_none(run.workspace_from),
        "project": clean_or_none(run.project),
        "type": clean_or_none(run.type),
        "priority": run.priority.value,
        "retry_on": to_json_or_none(run.retry_on),
        "run_at": run.run_at,
        "webhook_url": clean_or_none(run.webhook_url),
    }
