"""Approvals: asked for by the owner of a run, decided once by another person, for exactly these arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, or_, select, text, update

from app.core.agent_records import Approval, Decision
from app.core.errors import Conflict, NotFound
from app.core.models import Fence
from app.db.engine import Database
from app.db.row_codec import RowCodec
from app.db.run_claim import hold
from app.db.tables import approvals

_ROW = RowCodec(Approval, approvals)

_ASK = text(
    f"INSERT INTO approvals ({', '.join(_ROW.names)}) VALUES ({', '.join(f':{name}' for name in _ROW.names)})"
    " ON CONFLICT (run_id, step_id) DO NOTHING"
)


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
    ) -> Approval:
        """Decide about the step and the arguments of `of`; return what is kept.

        Raises:
            NotFound: this step has no request for approval.
            Conflict: it is decided (`decided`), too late (`expired`), or about other arguments
                (`args_changed`).
        """
        values = {"decision": decision.value, "by": by, "decided_at": now, "note": note}
        return await self._db.write(lambda connection: _decide(connection, of, values))

    async def of_run(self, run_id: str) -> list[Approval]:
        """Return all that was asked for in a run, in the order of asking."""
        order = (approvals.c.asked_at, approvals.c.step_id)
        query = select(*_ROW.columns).where(approvals.c.run_id == run_id).order_by(*order)
        rows = await self._db.read_one(lambda connection: connection.execute(query).all())
        return [_ROW.read(row) for row in rows]


def _ask(connection: Connection, fence: Fence, asked: Sequence[Approval]) -> None:
    hold(connection, fence)
    for each in asked:
        if each.run_id != fence.run_id:
            raise ValueError(f"step {each.step_id} belongs to {each.run_id}, not to {fence.run_id}")
        connection.execute(_ASK, _ROW.write(each))


def _decide(connection: Connection, of: Approval, values: dict[str, Any]) -> Approval:
    key, now = approvals.c, values["decided_at"]
    row = (key.run_id == of.run_id) & (key.step_id == of.step_id)
    is_open = key.decision.is_(None) & (key.args_sha256 == of.args_sha256)
    in_time = or_(key.expires_at.is_(None), key.expires_at > now, values["decision"] == Decision.EXPIRED)
    decided = connection.execute(
        update(approvals).where(row & is_open & in_time).values(values).returning(*_ROW.columns)
    ).first()
    if decided is not None:
        return _ROW.read(decided)
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
