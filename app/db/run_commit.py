"""The writes of a run's owner: one fenced transaction for lines, steps and the outcome.

The transaction begins with an UPDATE of the run's row that only the current attempt's worker can do,
and only from the sequence number it believes to be the last. On PostgreSQL everything is one
statement (the UPDATE is a CTE that the INSERTs hang on): one round trip, and either all or nothing. As in
`run_claim` its test of the status is an expression, so that only the run's id leads to the row.

What the owner of a run hands to one commit, and what it gets back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, TextClause, delete, select, text
from sqlalchemy.exc import IntegrityError

from app.core.agent_records import WaitingFor
from app.core.errors import LostOwnership
from app.core.events import Event, Written
from app.core.models import Fence, RunStatus, StepRecord
from app.db import run_wait
from app.db.engine import Database
from app.db.log_rows import block_values, insert_block, insert_from, insert_lines, line_arrays, weigh
from app.db.row_codec import clean_or_none, to_json, to_json_or_none
from app.db.run_queries import STEP_ROW
from app.db.tables import log_lines, runs
from app.db.webhook_store import note_end

_STEP_TYPES: dict[str, str] = {
    **dict.fromkeys(("idx", "attempt", "exit_code", "call"), "integer"),
    **dict.fromkeys(("started_at", "ended_at"), "bigint"),
}
_FENCE = """UPDATE runs SET last_seq = CAST(:top AS bigint),
 planner = coalesce(CAST(:planner AS text), planner),
 log_lines = log_lines + CAST(:lines AS bigint), log_size = log_size + CAST(:size AS bigint),
 truncated = (truncated OR CAST(:cut AS boolean)){outcome}
 WHERE run_id = CAST(:run_id AS text) AND attempt = CAST(:attempt AS integer)
 AND worker_id = CAST(:worker_id AS text) AND status || '' = 'running' AND last_seq = CAST(:after AS bigint)
 RETURNING cancel_requested_at, run_id, webhook_url"""
_FENCE_OUTCOME = """, status = CAST(:status AS text), exit_code = CAST(:exit_code AS integer),
 error = CAST(:error AS text), next_attempt_at = CAST(:next_attempt_at AS bigint),
 retries = retries + CAST(:retry AS integer), ended_at = CAST(:ended_at AS bigint),
 worker_id = CAST(:keep_worker AS text), waiting_for = CAST(:waiting_for AS text),
 result = coalesce(CAST(:result AS text), result)"""
_STEP_UPSERT = "ON CONFLICT (run_id, step_id) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}" for name in STEP_ROW.names if name not in {"run_id", "step_id"}
)
_STEPS_INTO = f"INSERT INTO steps ({', '.join(STEP_ROW.names)})"
_STEPS_SQLITE = f"{_STEPS_INTO} VALUES ({', '.join('?' * len(STEP_ROW.names))}) {_STEP_UPSERT}"
_STEPS_POSTGRES = (
    f"{_STEPS_INTO} SELECT recs.* FROM fence, unnest("
    + ", ".join(f"CAST(:step_{name} AS {_STEP_TYPES.get(name, 'text')}[])" for name in STEP_ROW.names)
    + f") AS recs {_STEP_UPSERT}"
)
_USAGE = """INSERT INTO usage (run_id, attempt, data)
 SELECT CAST(:run_id AS text), CAST(:attempt AS integer), CAST(:usage AS text) {gate}
 ON CONFLICT (run_id, attempt) DO UPDATE SET data = excluded.data"""
_WEBHOOK = """INSERT INTO webhooks (run_id, url, created_at, next_at, attempts, tries)
 SELECT run_id, webhook_url, CAST(:at AS bigint), CAST(:at AS bigint), 0, '[]' FROM fence
 WHERE webhook_url IS NOT NULL AND CAST(:ended_at AS bigint) IS NOT NULL"""
_ATTEMPT = """UPDATE attempts SET ended_at = CAST(:at AS bigint), outcome = CAST(:status AS text),
 error = CAST(:error AS text)
 WHERE run_id = CAST(:run_id AS text) AND attempt = CAST(:attempt AS integer){gate}"""
_NONE, _ROWS, _BLOCK = "", insert_from("fence"), insert_block("fence")


async def commit(db: Database, fence: Fence, after: int, batch: Batch) -> Committed:
    """Write `batch` if `fence` still holds and `after` is the last sequence number; else LostOwnership.

    A repeat of a commit whose reply was lost succeeds and changes nothing.
    """
    values = _values(fence, after, batch)
    parks = batch.outcome is not None and batch.outcome.status is RunStatus.WAITING
    transact = db.write if parks or batch.cut is not None else db.write_one
    try:
        row = await transact(lambda connection: _write(connection, values, batch))
    except IntegrityError as error:
        top = values["top"]
        raise LostOwnership(f"{fence.run_id}: another attempt wrote lines {after + 1} to {top}") from error
    if row is not None:
        return Committed(row[0])
    return await db.read_one(lambda connection: _committed_before(connection, fence, values["top"], batch))


def _write(connection: Connection, values: dict[str, Any], batch: Batch) -> Any:
    in_one = connection.dialect.name == "postgresql"
    row = (_in_one if in_one else _in_statements)(connection, values, batch)
    if row is not None and batch.cut is not None:
        _cut(connection, batch.cut)
    if row is not None and batch.outcome is not None and batch.outcome.status is RunStatus.WAITING:
        run_wait.parked(connection, values["run_id"], batch.outcome.inbox_upto, values["at"])
    return row


def _in_one(connection: Connection, values: dict[str, Any], batch: Batch) -> Any:
    block = block_values(batch.events) if batch.events else None
    arrays = block if block is not None else line_arrays(batch.events)
    lines = _NONE if not batch.events else _BLOCK if block is not None else _ROWS
    parts = (lines, bool(batch.steps), batch.usage is not None, batch.outcome is not None)
    if batch.steps:
        records = [STEP_ROW.write(record) for record in batch.steps]
        arrays |= {f"step_{name}": [record[name] for record in records] for name in STEP_ROW.names}
    return connection.execute(_statement(*parts), {**values, **arrays}).first()


@lru_cache(maxsize=24)
def _statement(lines: str, steps: bool, usage: bool, outcome: bool) -> TextClause:
    """Return the one statement for batches that have these parts; prepared once per connection."""
    parts = [f"WITH fence AS ({_FENCE.format(outcome=_FENCE_OUTCOME if outcome else '')})"]
    if lines:
        parts.append(f"lines_in AS ({lines})")
    if steps:
        parts.append(f"steps_in AS ({_STEPS_POSTGRES})")
    if usage:
        parts.append(f"usage_in AS ({_USAGE.format(gate='FROM fence')})")
    if outcome:
        parts.append(f"attempt_end AS ({_ATTEMPT.format(gate=' AND EXISTS (SELECT 1 FROM fence)')})")
        parts.append(f"webhook_in AS ({_WEBHOOK})")
    return text(", ".join(parts) + " SELECT cancel_requested_at FROM fence")


def _in_statements(connection: Connection, values: dict[str, Any], batch: Batch) -> Any:
    row = connection.execute(_FENCE_END if batch.outcome else _FENCE_ON, values).first()
    if row is None:
        return None
    insert_lines(connection, batch.events)
    if batch.steps:
        connection.exec_driver_sql(
            _STEPS_SQLITE, [tuple(STEP_ROW.write(one).values()) for one in batch.steps]
        )
    if batch.usage is not None:
        connection.execute(_USAGE_SQLITE, values)
    if batch.outcome is not None:
        connection.execute(_ATTEMPT_SQLITE, values)
        if batch.outcome.status.terminal:
            note_end(connection, row.run_id, row.webhook_url, values["at"])
    return row


def _cut(connection: Connection, cut: Cut) -> None:
    key = log_lines.c
    gone = (key.run_id == cut.marker.run_id) & key.seq.between(cut.from_seq, cut.marker.seq)
    connection.execute(delete(log_lines).where(gone))
    insert_lines(connection, [cut.marker])


def _values(fence: Fence, after: int, batch: Batch) -> dict[str, Any]:
    if batch.events and batch.events[0].first <= after:
        raise ValueError(f"{fence.run_id}: event {batch.events[0].first} does not follow {after}")
    lines, size = weigh(batch.events)
    values: dict[str, Any] = {
        "run_id": fence.run_id,
        "attempt": fence.attempt,
        "worker_id": fence.worker_id,
        "after": after,
        "top": batch.events[-1].seq if batch.events else after,
        "planner": clean_or_none(batch.planner),
        "lines": lines,
        "size": size,
        "cut": batch.cut is not None,
    }
    if batch.usage is not None:
        values["usage"] = to_json(batch.usage)
    if batch.outcome is not None:
        values |= _outcome_values(batch.outcome, fence, batch.events)
    return values


def _outcome_values(outcome: Outcome, fence: Fence, events: Sequence[Written]) -> dict[str, Any]:
    at = events[-1].ts if outcome.at is None and events else outcome.at
    if at is None:
        raise ValueError("an outcome needs its event or a time")
    terminal = outcome.status.terminal
    return {
        "at": at,
        "status": outcome.status.value,
        "exit_code": outcome.exit_code,
        "error": to_json_or_none(outcome.error),
        "next_attempt_at": outcome.next_attempt_at,
        "retry": int(outcome.counts_retry),
        "ended_at": at if terminal else None,
        "keep_worker": fence.worker_id if terminal else None,
        "waiting_for": None if outcome.waiting_for is None else outcome.waiting_for.value,
        "result": to_json_or_none(outcome.result),
    }


def _committed_before(connection: Connection, fence: Fence, top: int, batch: Batch) -> Committed:
    """Tell a repeated commit, whose first reply was lost, from one that comes too late."""
    columns = (runs.c.status, runs.c.attempt, runs.c.worker_id, runs.c.last_seq, runs.c.cancel_requested_at)
    row = connection.execute(select(*columns).where(runs.c.run_id == fence.run_id)).first()
    if row is not None and (row.attempt, row.last_seq) == (fence.attempt, top):
        if batch.outcome is not None and row.status == batch.outcome.status:
            return Committed(row.cancel_requested_at)
        if batch.outcome is None and (row.status, row.worker_id) == (RunStatus.RUNNING, fence.worker_id):
            return Committed(row.cancel_requested_at)
    raise LostOwnership(f"{fence.run_id}: attempt {fence.attempt} is not the owner any more")


_FENCE_ON = text(_FENCE.format(outcome=""))
_FENCE_END = text(_FENCE.format(outcome=_FENCE_OUTCOME))
_USAGE_SQLITE = text(_USAGE.format(gate="WHERE true"))
_ATTEMPT_SQLITE = text(_ATTEMPT.format(gate=""))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: a terminal status, QUEUED for one more attempt, or WAITING for a person.

    `at` (microseconds) is the time of the batch's last event unless given. `result` is an agent's answer.
    How a run is parked: see `app.db.run_wait`. `next_attempt_at` is then when the wait is over in any case,
    and `inbox_upto` the last message that the attempt has seen.
    """

    status: RunStatus
    exit_code: int | None = None
    error: dict[str, Any] | None = None
    next_attempt_at: int | None = None
    counts_retry: bool = False
    at: int | None = None
    result: dict[str, Any] | None = None
    waiting_for: WaitingFor | None = None
    inbox_upto: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """The log cap: `marker` takes the place of the rows `from_seq` to `marker.seq`."""

    marker: Event
    from_seq: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The content of one transaction. `events` are in order, the first one follows the last committed."""

    events: Sequence[Written] = ()
    steps: Sequence[StepRecord] = ()
    outcome: Outcome | None = None
    cut: Cut | None = None
    planner: str | None = None
    usage: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """The row's answer to a commit."""

    cancel_requested_at: int | None
