"""Short ways to make runs, events and batches for tests of the database."""

from __future__ import annotations

import itertools
from typing import Any

from app.core.agent_records import CallRecord, CallStatus, WaitingFor
from app.core.events import Event, EventType
from app.core.models import Fence, Run, RunKind, RunStatus, StepRecord, StepStatus
from app.db.engine import Database
from app.db.run_store import Batch, Outcome, RunDraft, RunStore
from tailrun.process.lines import Level, Stream

NOW = 1_790_000_000_000_000
_ids = itertools.count(1)


def new_run(**fields: Any) -> RunDraft:
    defaults: dict[str, Any] = {
        "run_id": f"run-{next(_ids):06}",
        "user_id": "ann",
        "kind": RunKind.PROMPT,
        "spec": {"prompt": "hello", "planner": "smoke"},
        "start": True,
        "max_attempts": 3,
        "timeout_s": 60.0,
        "labels": {},
    }
    return RunDraft(**(defaults | fields))


def line(run_id: str, seq: int, content: str = "a line", attempt: int = 1, **fields: Any) -> Event:
    fields = {"level": Level.INFO, "stream": Stream.STDOUT, "step": "s1"} | fields
    return Event(seq, EventType.LOG, NOW + seq, run_id, attempt, content=content, **fields)


def lines(run_id: str, first: int, last: int, attempt: int = 1) -> list[Event]:
    return [line(run_id, seq, f"line {seq}", attempt) for seq in range(first, last + 1)]


def end(run_id: str, seq: int, status: RunStatus = RunStatus.SUCCEEDED, attempt: int = 1) -> Event:
    data = {"status": status.value, "exit_code": 0, "error": None}
    return Event(seq, EventType.END, NOW + seq, run_id, attempt, data=data)


def step(
    run_id: str, step_id: str = "s1", status: StepStatus = StepStatus.RUNNING, **fields: Any
) -> StepRecord:
    defaults: dict[str, Any] = {"idx": 0, "tool": "shell", "args": {}, "attempt": 1, "started_at": NOW}
    return StepRecord(run_id=run_id, step_id=step_id, status=status, **(defaults | fields))


def model_call(run_id: str, n: int = 1, **fields: Any) -> CallRecord:
    """A call that was sent by the first attempt, with 100 tokens and 50 millionths of a dollar reserved."""
    defaults: dict[str, Any] = {"status": CallStatus.SENT, "attempt": 1, "model": "m", "dialect": "chat"}
    defaults |= {"request_hash": "h", "reserved_tokens": 100, "reserved_u": 50, "sent_at": NOW}
    return CallRecord(run_id=run_id, n=n, **(defaults | fields))


def ended(run_id: str, seq: int, status: RunStatus = RunStatus.SUCCEEDED) -> Batch:
    return Batch(events=[end(run_id, seq, status)], outcome=Outcome(status, 0))


def parked(run_id: str, seq: int, kind: WaitingFor = WaitingFor.APPROVAL, **fields: Any) -> Batch:
    """The end of a first attempt whose run waits for somebody, until `NOW + 1000`."""
    data = {"status": "waiting", "waiting_for": kind.value}
    event = Event(seq, EventType.STATUS, NOW + seq, run_id, 1, data=data)
    defaults: dict[str, Any] = {"waiting_for": kind, "next_attempt_at": NOW + 1000}
    return Batch(events=[event], outcome=Outcome(RunStatus.WAITING, **(defaults | fields)))


async def running(store: RunStore, worker_id: str = "w1", **fields: Any) -> tuple[Run, Fence]:
    """A run that `worker_id` has claimed; its last sequence number is 2."""
    created = await store.create(new_run(**fields), NOW)
    (run,) = await store.claim([created.run.run_id], worker_id, NOW + 1)
    return run, Fence(run.run_id, run.attempt, worker_id)


async def snapshot(db: Database, run_id: str) -> tuple[Any, ...]:
    """Everything the database holds of a run."""
    from sqlalchemy import select  # noqa: PLC0415

    from app.db import tables  # noqa: PLC0415

    names = ("runs", "attempts", "steps", "log_lines", "usage", "model_calls", "inbox", "approvals")

    def work(connection: Any) -> tuple[Any, ...]:
        found: list[Any] = []
        for table in (getattr(tables, name) for name in names):
            query = select(table).where(table.c.run_id == run_id).order_by(*table.primary_key)
            found.append(tuple(connection.execute(query)))
        return tuple(found)

    return await db.read(work)
