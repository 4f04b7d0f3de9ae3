"""An agent's run that waits for somebody, made in the database as its worker would have left it."""

from __future__ import annotations

import uuid
from dataclasses import replace

from app.core.agent_records import Approval, CallStatus, WaitingFor
from app.core.clock import now_us
from app.core.events import Event, EventType
from app.core.models import Fence, RunStatus, StepStatus
from app.db.approval_store import ApprovalStore
from app.db.call_store import CallStore
from app.db.engine import Database
from app.db.run_store import Batch, Outcome, RunStore
from support.run_rows import model_call, new_run, step

STEP = "c1-0"
HASH = "a" * 64
_ARGS = {"command": "rm -r build"}
_PATIENCE_US = 3_600_000_000


async def waiting_run(
    database_url: str,
    user_id: str = "ada",
    args_sha256: str = HASH,
    *,
    kind: WaitingFor = WaitingFor.APPROVAL,
    steps: int = 1,
    patience_us: int = _PATIENCE_US,
    run_id: str | None = None,
) -> str:
    """Make the run, or take one that is queued. Its steps `c1-0` and so on ask for their approval."""
    db = Database(database_url)
    try:
        runs, now = RunStore(db), now_us()
        spec = {"prompt": "clean up", "planner": "agent"}
        if run_id is None:
            new = new_run(run_id=str(uuid.uuid4()), user_id=user_id, spec=spec)
            run_id = (await runs.create(new, now)).run.run_id
        [run] = await runs.claim([run_id], "w1", now)
        fence = Fence(run.run_id, run.attempt, "w1")
        names = [f"c1-{k}" for k in range(steps if kind is WaitingFor.APPROVAL else 0)]
        records = [step(run.run_id, name, StepStatus.WAITING, args=_ARGS, call=1) for name in names]
        calls, sent = CallStore(db), model_call(run.run_id)
        await calls.send(fence, sent)
        answered = replace(sent, status=CallStatus.ANSWERED, ended_at=now)
        await calls.settle(fence, answered)
        await runs.commit(fence, 2, Batch(steps=records))
        asked = [
            Approval(
                run_id=run.run_id,
                step_id=name,
                args_sha256=args_sha256,
                rule="auto",
                asked_at=now,
                expires_at=now + patience_us,
            )
            for name in names
        ]
        await ApprovalStore(db).ask(fence, asked)
        data = {"status": "waiting", "waiting_for": kind.value}
        event = Event(3, EventType.STATUS, now, run.run_id, run.attempt, data=data)
        outcome = Outcome(RunStatus.WAITING, waiting_for=kind, next_attempt_at=now + patience_us)
        await runs.commit(fence, 2, Batch(events=[event], outcome=outcome))
        return run.run_id
    finally:
        await db.close()
