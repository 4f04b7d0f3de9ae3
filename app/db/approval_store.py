"""Approvals: asked for by the owner of a run, decided once by another person, for exactly these arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, or_, select, text, update

from app.core.agent_records import Approval, Decision
from app.core.errors import Conflict, NotFound
from app.core.models import Fence, RunStatus
from app.db import run_change, run_wait
from app.db.engine import Database
from app.db.row_codec import RowCodec, clean, from_json
from app.db.run_change import Changed
from app.db.run_claim import hold
from app.db.run_queries import owner
from app.db.tables import IS_WAITING, OWNER, approvals, runs, steps

_ROW = RowCodec(Approval, approvals)

_ASK = text(
    f"INSERT INTO approvals ({', '.join(_ROW.names)}) VALUES ({', '.join(f':{name}' for name in _ROW.names)})"
    " ON CONFLICT (run_id, step_id) DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class Decided:
    """What is kept of a question, and what became of its run: queued, if it waited for no other."""

    approval: Approval
    changed: Changed


@dataclass(frozen=True, slots=True)
class Question:
    """An approval with the step that it is about; None where the step's row is not there."""

    approval: Approval
    tool: str | None
    args: dict[str, Any] | None


class ApprovalStore:
    """Approvals in the database. Every call may raise `StorageError`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def ask(self, fence: Fence, asked: Sequence[Approval]) -> None:
        """Ask for steps, all at once; LostOwnership when `fence` is not the owner's.

        A step that was asked for before stays as it is, decided or not.
        """
        await self._db.write(lambda connection: _ask(connection, fence, asked))

    async def decide(
        self, of: Approval, decision: Decision, now: int, *, by: str | None = None, note: str | None = None
    ) -> Decided:
        """Decide about the step and the arguments of `of`; wake its run if that was all it waited for.

        Push the run if `changed` has events and it is queued; the reconciler does so otherwise.

        Raises:
            NotFound: this step has no request for approval.
            Conflict: it is decided (`decided`), too late (`expired`), about other arguments
                (`args_changed`), or the run has ended (`finished`).
        """
        values = {"decision": decision.value, "by": by, "decided_at": now, "note": note}
        return await self._db.write(lambda connection: _decide(connection, of, values))

    async def of_run(self, run_id: str) -> list[Approval]:
        """Return all that was asked for in a run, in the order of asking."""
        order = (approvals.c.asked_at, approvals.c.step_id)
        query = select(*_ROW.columns).where(approvals.c.run_id == run_id).order_by(*order)
        rows = await self._db.read_one(lambda connection: connection.execute(query).all())
        return [_ROW.read(row) for row in rows]

    async def open_of(self, user_id: str | None, limit: int) -> list[Question]:
        """Return open questions of runs that wait, of one user or (None) of all, oldest run first."""
        of_user = text(f"{OWNER} = :owner").bindparams(owner=owner(clean(user_id or ""), RunStatus.WAITING))
        mine = text(IS_WAITING) if user_id is None else of_user
        since = runs.c.next_attempt_at if user_id is None else runs.c.created_at
        waits = select(runs.c.run_id, since.label("since")).where(mine).subquery()
        its = steps.c
        query = (
            select(*_ROW.columns, its.tool, its.args)
            .select_from(waits)
            .join(approvals, approvals.c.run_id == waits.c.run_id)
            .outerjoin(steps, (its.run_id == waits.c.run_id) & (its.step_id == approvals.c.step_id))
            .where(approvals.c.decision.is_(None))
            .order_by(waits.c.since, approvals.c.run_id, approvals.c.step_id)
            .limit(limit)
        )
        rows = await self._db.read_one(lambda connection: connection.execute(query).all())
        return [_question(*row) for row in rows]


def _question(*row: Any) -> Question:
    *asked, tool, args = row
    return Question(_ROW.read(asked), tool, None if args is None else from_json(args, {}, "steps.args"))


def _ask(connection: Connection, fence: Fence, asked: Sequence[Approval]) -> None:
    hold(connection, fence)
    for each in asked:
        if each.run_id != fence.run_id:
            raise ValueError(f"step {each.step_id} belongs to {each.run_id}, not to {fence.run_id}")
        connection.execute(_ASK, _ROW.write(each))


def _decide(connection: Connection, of: Approval, values: dict[str, Any]) -> Decided:
    run = run_change.locked(connection, of.run_id)
    if run.status.terminal:
        raise Conflict(
            f"run {run.run_id} is {run.status}: nothing of it is started any more", code="finished"
        )
    key, now = approvals.c, values["decided_at"]
    row = (key.run_id == of.run_id) & (key.step_id == of.step_id)
    is_open = key.decision.is_(None) & (key.args_sha256 == of.args_sha256)
    in_time = or_(key.expires_at.is_(None), key.expires_at > now, values["decision"] == Decision.EXPIRED)
    decided = connection.execute(
        update(approvals).where(row & is_open & in_time).values(values).returning(*_ROW.columns)
    ).first()
    if decided is not None:
        return Decided(_ROW.read(decided), run_wait.decided(connection, run, decided, now))
    found = connection.execute(select(*_ROW.columns).where(row)).first()
    if found is None:
        raise NotFound(f"run {of.run_id} asks for no approval of step {of.step_id}")
    raise _refusal(_ROW.read(found), of)


def _refusal(found: Approval, of: Approval) -> Conflict:
    step = f"step {found.step_id}"
    if found.decision is not None:
        by = f" by {found.by}" if found.by else ""
        return Conflict(f"{step} is decided: {found.decision}{by}", code="decided")
    if found.args_sha256 != of.args_sha256:
        return Conflict(f"{step} has other arguments than these: look at it again", code="args_changed")
    return Conflict(f"{step} was to be decided earlier: it counts as denied", code="expired")
