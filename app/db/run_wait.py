"""Runs that wait for a person: an approval, or the answer to a question. No worker has one, it is a row.

How an agent's loop parks a run, in this order, each step safe to repeat:

1. `ApprovalStore.ask(fence, [Approval(…, expires_at=until), …])`, all questions of a reply at once (for
   `ANSWER` there is nothing to ask).
2. `LogWriter.finish(Outcome(RunStatus.WAITING, waiting_for=WaitingFor.APPROVAL, next_attempt_at=until,
   inbox_upto=k), EventType.STATUS, {"status": "waiting", "waiting_for": "approval", "until": …})`, where `k`
   is the last message that the conversation has seen. It ends the attempt, after all its lines, in the
   transaction that its owner alone can make.
3. `JobQueue.requeue([entry])`, never only an ack. What the run waits for may have come between 1 and 2: then
   the transaction of 2 leaves it `queued`, and the entry that went back is claimed. In the usual case the
   row is `waiting`, and the next claimer drops the entry.

The run becomes `queued` again in the transaction that answers it, under the lock of its row and so once:

    approvals  the last open one is decided, or its time is over
    answer     a message comes, or the time is over
    any        a message with mode `interrupt`: open approvals are denied on its behalf

The next attempt reads the rows. For an approval it finds a decision; one that says `expired` is told to the
model as a denial. With `"on_expiry": "fail"` in the run's `agent` there is no next attempt: the run ends with
`approval_expired`. Events of decisions and of the way back into the queue are written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from app.core.agent_records import Decision, WaitingFor
from app.core.events import Event, EventType
from app.core.models import Run, RunStatus
from app.db import run_change
from app.db.log_rows import insert_lines
from app.db.run_change import Changed
from app.db.tables import approvals, inbox
from app.db.webhook_store import drop_notice, note_end
from tailrun.process.errors import ErrorCode
from tailrun.process.lines import Level

INTERRUPTED = "the user wrote instead"
ON_EXPIRY_FAIL = "fail"


def parked(connection: Connection, run_id: str, inbox_upto: int, now: int) -> None:
    """Let a run wait that its owner has just marked so, unless there is nothing to wait for any more."""
    run = run_change.locked(connection, run_id)
    if run.cancel_requested_at is not None:
        _wake(connection, run, now, [])
    elif _has_come(connection, run, inbox_upto):
        denied = _close(connection, run_id, now, Decision.DENIED, note=INTERRUPTED)
        _wake(connection, run, now, [_told(run, n, row, now) for n, row in enumerate(denied, 1)])
    else:
        note_end(connection, run_id, run.webhook_url, now)


def decided(connection: Connection, run: Run, row: Row[Any], now: int) -> Changed:
    """Tell of a decision about a locked run, and wake the run if it was the last one that it waited for."""
    if run.status is not RunStatus.WAITING:  # its owner alone writes events
        return Changed(run, [])
    events = [_told(run, 1, row, now)]
    if run.waiting_for == WaitingFor.APPROVAL and not _open(connection, run.run_id):
        return _wake(connection, run, now, events)
    return _say(connection, run, events)


def written(connection: Connection, run: Run, by: str, now: int, *, interrupts: bool) -> Changed:
    """Wake a locked run for a message, if it waits for one, or the message does not wait."""
    if run.status is not RunStatus.WAITING or not (interrupts or run.waiting_for == WaitingFor.ANSWER):
        return Changed(run, [])
    denied = _close(connection, run.run_id, now, Decision.DENIED, by=by, note=INTERRUPTED)
    return _wake(connection, run, now, [_told(run, n, row, now) for n, row in enumerate(denied, 1)])


def overdue(connection: Connection, run_id: str, now: int) -> Changed:
    """Wake a run whose time to wait is over, or end it if it wants that; nothing where it is not over."""
    run = run_change.locked(connection, run_id)
    if run.status is not RunStatus.WAITING or run.next_attempt_at is None or run.next_attempt_at > now:
        return Changed(run, [])
    expired = _close(connection, run_id, now, Decision.EXPIRED)
    events = [_told(run, n, row, now) for n, row in enumerate(expired, 1)]
    if (run.agent or {}).get("on_expiry") != ON_EXPIRY_FAIL:
        return _wake(connection, run, now, events)
    what = "approved" if run.waiting_for == WaitingFor.APPROVAL else "answered"
    error = {"code": ErrorCode.APPROVAL_EXPIRED.value, "message": f"it was not {what} in time"}
    return run_change.end(connection, run, RunStatus.FAILED, error, now, before=events)


def _has_come(connection: Connection, run: Run, inbox_upto: int) -> bool:
    """Whether what a run waits for is there already."""
    mine = (inbox.c.run_id == run.run_id) & (inbox.c.k > inbox_upto)
    if run.waiting_for == WaitingFor.APPROVAL:
        mine &= inbox.c.mode == "interrupt"
    news = connection.execute(select(func.count()).where(mine)).scalar_one()
    return bool(news) or (run.waiting_for == WaitingFor.APPROVAL and not _open(connection, run.run_id))


def _open(connection: Connection, run_id: str) -> bool:
    mine = (approvals.c.run_id == run_id) & approvals.c.decision.is_(None)
    return connection.execute(select(approvals.c.step_id).where(mine).limit(1)).first() is not None


def _close(
    connection: Connection, run_id: str, now: int, decision: Decision, **values: Any
) -> Sequence[Row[Any]]:
    """Decide about all that is open of a run; return the rows, in the order of their steps."""
    mine = (approvals.c.run_id == run_id) & approvals.c.decision.is_(None)
    statement = update(approvals).where(mine).values(decision=decision.value, decided_at=now, **values)
    rows = connection.execute(statement.returning(*approvals.c)).all()
    return sorted(rows, key=lambda row: row.step_id)


def _wake(connection: Connection, run: Run, now: int, events: list[Event]) -> Changed:
    seq = run.last_seq + len(events) + 1
    queued = Event(
        seq, EventType.STATUS, now, run.run_id, run.attempt, data={"status": RunStatus.QUEUED.value}
    )
    insert_lines(connection, [*events, queued])
    drop_notice(connection, run.run_id)
    values = {"status": RunStatus.QUEUED, "queued_at": now, "next_attempt_at": None, "waiting_for": None}
    return Changed(run_change.change(connection, run.run_id, last_seq=seq, **values), [*events, queued])


def _say(connection: Connection, run: Run, events: list[Event]) -> Changed:
    insert_lines(connection, events)
    return Changed(run_change.change(connection, run.run_id, last_seq=events[-1].seq), events)


def _told(run: Run, n: int, row: Row[Any], now: int) -> Event:
    """Return the `n`-th new event: what was decided about a step."""
    by = f" by {row.by}" if row.by else ""
    data: dict[str, Any] = {
        "status": row.decision,
        "args_sha256": row.args_sha256,
        "rule": row.rule,
        "by": row.by,
    }
    return Event(
        run.last_seq + n,
        EventType.APPROVAL,
        now,
        run.run_id,
        run.attempt,
        Level.INFO if row.decision == Decision.APPROVED else Level.WARNING,
        step=row.step_id,
        content=f"{row.step_id} {row.decision}{by}",
        data=data,
    )
