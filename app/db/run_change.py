"""Changes of a run's state from outside of an attempt: start and cancel.

Each locks the run's row first, so that the events it writes get the next sequence numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, update

from app.core.errors import Conflict, NotFound
from app.core.events import Event, EventType
from app.core.models import Run, RunStatus, StepStatus
from app.db.log_rows import insert_lines
from app.db.row_codec import to_json
from app.db.run_queries import RUN_ROW
from app.db.tables import log_lines, runs, steps
from app.db.webhook_store import drop_notice, note_end
from tailrun.process.errors import ErrorCode
from tailrun.process.lines import Level, Stream

_UNOWNED = (RunStatus.CREATED, RunStatus.QUEUED, RunStatus.WAITING)


@dataclass(frozen=True, slots=True)
class Changed:
    """The run after a call, and the events that this very call committed (none: nothing changed)."""

    run: Run
    events: list[Event]


def start(connection: Connection, run_id: str, now: int) -> Changed:
    """Take a run from created to queued."""
    run = locked(connection, run_id)
    if run.status.terminal:
        raise Conflict(
            f"run {run_id} is {run.status.value}: make a new run with POST /v1/runs/{run_id}/retry"
        )
    if run.status is not RunStatus.CREATED:
        return Changed(run, [])
    event = Event(
        run.last_seq + 1,
        EventType.STATUS,
        now,
        run_id,
        run.attempt,
        data={"status": RunStatus.QUEUED.value},
    )
    insert_lines(connection, [event])
    due = run.run_at if (run.run_at or 0) > now else None
    queued = change(
        connection,
        run_id,
        status=RunStatus.QUEUED,
        queued_at=now,
        next_attempt_at=due,
        last_seq=event.seq,
    )
    return Changed(queued, [event])


def request_cancel(connection: Connection, run_id: str, now: int) -> Changed:
    """Note the request; end the run at once when it has no owner."""
    run = locked(connection, run_id)
    if run.status.terminal:
        return Changed(run, [])
    at = now if run.cancel_requested_at is None else run.cancel_requested_at
    if run.status in _UNOWNED:
        when = "while it waited" if run.status is RunStatus.WAITING else "before it was started"
        error = {"code": ErrorCode.CANCELLED.value, "message": f"cancelled {when}"}
        return end(connection, run, RunStatus.CANCELLED, error, now, cancel_requested_at=at)
    if run.cancel_requested_at is not None:
        return Changed(run, [])
    return Changed(change(connection, run_id, cancel_requested_at=at), [])


def locked(connection: Connection, run_id: str) -> Run:
    """Return the run, its row locked for the rest of the transaction."""
    row = connection.execute(
        select(*RUN_ROW.columns).where(runs.c.run_id == run_id).with_for_update()
    ).first()
    if row is None:
        raise NotFound(f"there is no run {run_id}")
    return RUN_ROW.read(row)


def note_waiting(connection: Connection, run_id: str, text: str, now: int) -> Changed:
    """Put a line into the log of a run that is queued and due; nothing where it is not, or ends with it."""
    run = locked(connection, run_id)
    if run.status is not RunStatus.QUEUED or (run.next_attempt_at or 0) > now:
        return Changed(run, [])
    last = (log_lines.c.run_id == run_id) & (log_lines.c.seq == run.last_seq)
    if connection.scalar(select(log_lines.c.content).where(last)) == text:
        return Changed(run, [])
    level, stream = Level.WARNING, Stream.SYSTEM
    event = Event(run.last_seq + 1, EventType.LOG, now, run_id, run.attempt, level, stream, content=text)
    insert_lines(connection, [event])
    return Changed(change(connection, run_id, last_seq=event.seq), [event])


def end(
    connection: Connection,
    run: Run,
    status: RunStatus,
    error: dict[str, Any],
    now: int,
    *,
    before: Sequence[Event] = (),
    **more: Any,
) -> Changed:
    """End a locked run that has no owner; `before` are events of the same moment, which come first."""
    event = Event(
        run.last_seq + len(before) + 1,
        EventType.END,
        now,
        run.run_id,
        run.attempt + 1,
        data={"status": status.value, "exit_code": None, "error": error},
    )
    insert_lines(connection, [*before, event])
    if run.status is RunStatus.WAITING:
        drop_notice(connection, run.run_id)
        _cancel_steps(connection, run.run_id, now)
    ended = change(
        connection,
        run.run_id,
        status=status,
        attempt=run.attempt + 1,
        worker_id=None,
        ended_at=now,
        next_attempt_at=None,
        waiting_for=None,
        exit_code=None,
        error=to_json(error),
        last_seq=event.seq,
        **more,
    )
    note_end(connection, run.run_id, run.webhook_url, now)
    return Changed(ended, [*before, event])


def _cancel_steps(connection: Connection, run_id: str, now: int) -> None:
    """Mark the steps that have not begun, and never will."""
    not_begun = steps.c.status.in_([StepStatus.PROPOSED.value, StepStatus.WAITING.value])
    cancelled = {"status": StepStatus.CANCELLED.value, "ended_at": now}
    connection.execute(update(steps).where((steps.c.run_id == run_id) & not_begun).values(cancelled))


def change(connection: Connection, run_id: str, **values: Any) -> Run:
    """Write these columns of a locked run; return it as it is then."""
    statement = update(runs).where(runs.c.run_id == run_id).values(**values).returning(*RUN_ROW.columns)
    return RUN_ROW.read(connection.execute(statement).one())
