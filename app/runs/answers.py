"""What a user says to an agent: decisions about its steps, and messages; and the run's way back to a worker.

A decision or message is one transaction with what it does to its run (`app.db.run_wait`). What follows here,
the news to watchers and the push, may be lost: watchers compare with the database, and the reconciler pushes.
"""

from __future__ import annotations

from app.core.agent_records import Approval, Decision, InboxMessage
from app.core.clock import now_us
from app.core.errors import StorageError, Unprocessable
from app.core.models import Run, RunStatus
from app.core.telemetry import APPROVALS, get_logger
from app.plan.fenced_plans import AGENT
from app.runs.services import Principal, Services
from app.runs.waiting import pass_on

_log = get_logger(__name__)


async def decide(
    services: Services, user: Principal, of: Approval, *, approve: bool, note: str | None
) -> Approval:
    """Approve or deny a step that waits, for exactly the arguments of `of`.

    Raises:
        NotFound: no approval of this step was asked for.
        Conflict: it is decided, too late, about other arguments, or the run has ended.
    """
    now = now_us()
    decision = Decision.APPROVED if approve else Decision.DENIED
    decided = await services.approvals.decide(of, decision, now, by=user.user_id, note=note)
    _log.info("step decided", run_id=of.run_id, step=of.step_id, decision=decision, user_id=user.user_id)
    APPROVALS.labels(decision.value).inc()
    await pass_on(services.queue, services.publisher, decided.changed, now)
    return decided.approval


async def send_message(services: Services, run: Run, message: InboxMessage) -> InboxMessage:
    """Keep a message for an agent; one that waits for it continues, one that works reads it by itself.

    Raises:
        Unprocessable: the run is no agent's.
        Conflict: the run has ended, has as many messages as one may, or the key was used for another one.
    """
    if run.spec.get("planner") != AGENT:
        raise Unprocessable(
            "Only a run that a language model carries out reads messages; this one follows its plan.",
            code="no_agent",
        )
    if (run.agent or {}).get("replay"):
        raise Unprocessable("A replay reads the recorded messages and no others.", code="is_replay")
    delivered = await services.inbox.add(message)
    await pass_on(services.queue, services.publisher, delivered.changed, message.created_at)
    if delivered.changed.run.status is RunStatus.RUNNING:
        await _signal(services, run.run_id)
    return delivered.message


async def _signal(services: Services, run_id: str) -> None:
    """Make the worker look sooner; it reads messages before each call of the model in any case."""
    try:
        await services.publisher.signal(run_id, "MESSAGE")
    except StorageError as error:
        _log.warning("a message's signal is not sent", run_id=run_id, error=str(error))
