"""Calls of the model: written down before they are made, and their replies before anything is done with them.

    send    the row `sent` and its reservation, before the request leaves
    settle  what became of it; of a reply also all steps that it asks for, in the same transaction
    lose    what earlier attempts left `sent`: their reservation stays spent, for it may be billed

Each locks the run's row as long as the attempt owns it, so that nothing of an earlier owner lands, and each
may be repeated when its own reply was lost. What a run has spent is kept in its row: the sum of `tokens`
and `dollars_u` over its calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, insert, select, text, update

from app.core.agent_records import CallRecord, CallStatus
from app.core.models import Fence, StepRecord
from app.db.engine import Database
from app.db.row_codec import RowCodec, unpacked
from app.db.run_claim import hold
from app.db.run_queries import STEP_ROW
from app.db.tables import model_calls, runs, steps, transcripts

CALL_ROW = RowCodec(CallRecord, model_calls)

_SEND = text(
    f"INSERT INTO model_calls ({', '.join(CALL_ROW.names)})"
    f" VALUES ({', '.join(f':{name}' for name in CALL_ROW.names)})"
    " ON CONFLICT (run_id, n) DO NOTHING RETURNING n"
)


class CallStore:
    """Calls in the database. Every call may raise `StorageError`, and those with a fence `LostOwnership`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def send(self, fence: Fence, call: CallRecord) -> None:
        """Write down a call that is about to be made, and reserve what it may take.

        Raises:
            ValueError: there is another call of that number.
        """
        _check(fence, call, sent=True)
        await self._db.write(lambda connection: _send(connection, fence, call))

    async def settle(self, fence: Fence, call: CallRecord, proposed: Sequence[StepRecord] = ()) -> None:
        """Write down what became of a call that this attempt sent, and the steps that its reply asks for.

        `call` is the whole record as it is from now on.

        Raises:
            ValueError: this attempt sent no such call, or it is settled as something else.
        """
        _check(fence, call, sent=False)
        await self._db.write(lambda connection: _settle(connection, fence, call, proposed))

    async def lose(self, fence: Fence, now: int) -> list[int]:
        """Mark the calls that earlier attempts sent and never settled; return their numbers, in order."""
        return await self._db.write(lambda connection: _lose(connection, fence, now))

    async def of_run(self, run_id: str) -> list[CallRecord]:
        """Return all calls of a run, in order."""
        query = select(*CALL_ROW.columns).where(model_calls.c.run_id == run_id).order_by(model_calls.c.n)
        rows = await self._db.read_one(lambda connection: connection.execute(query).all())
        return [CALL_ROW.read(row) for row in rows]

    async def page(self, run_id: str, after: int, limit: int) -> list[CallRecord]:
        """Return at most `limit` calls behind the `after`-th, in order."""
        mine = (model_calls.c.run_id == run_id) & (model_calls.c.n > after)
        query = select(*CALL_ROW.columns).where(mine).order_by(model_calls.c.n).limit(limit)
        rows = await self._db.read_one(lambda connection: connection.execute(query).all())
        return [CALL_ROW.read(row) for row in rows]

    async def steps_of(self, run_id: str, first: int, last: int) -> list[StepRecord]:
        """Return the steps that the replies to the calls `first` to `last` have asked for, in order."""
        mine = (steps.c.run_id == run_id) & steps.c.call.between(first, last)
        query = select(*STEP_ROW.columns).where(mine).order_by(steps.c.idx, steps.c.step_id)
        rows = await self._db.read_one(lambda connection: connection.execute(query).all())
        return [STEP_ROW.read(row) for row in rows]

    async def transcript(self, run_id: str) -> str | None:
        """Return the transcript that was sent for a run to replay it."""
        query = select(transcripts.c.content).where(transcripts.c.run_id == run_id)
        found = await self._db.read_one(lambda connection: connection.execute(query).scalar())
        return None if found is None else unpacked(found, "transcripts.content").decode()


def _check(fence: Fence, call: CallRecord, *, sent: bool) -> None:
    if (call.run_id, call.attempt) != (fence.run_id, fence.attempt):
        raise ValueError(f"call {call.n} of {call.run_id} belongs to another attempt than {fence.attempt}")
    if (call.status is CallStatus.SENT) is not sent:
        raise ValueError(f"call {call.n} of {call.run_id} is {call.status}")


def _send(connection: Connection, fence: Fence, call: CallRecord) -> None:
    hold(connection, fence)
    if connection.execute(_SEND, CALL_ROW.write(call)).first() is None:
        return _expect_repeat(connection, call)
    return _spend(connection, call.run_id, call.tokens, call.dollars_u)


def _settle(connection: Connection, fence: Fence, call: CallRecord, proposed: Sequence[StepRecord]) -> None:
    hold(connection, fence)
    mine = (model_calls.c.status == CallStatus.SENT.value) & (model_calls.c.attempt == fence.attempt)
    reserved = (model_calls.c.reserved_tokens, model_calls.c.reserved_u)
    statement = update(model_calls).where(_key(call) & mine).values(CALL_ROW.write(call)).returning(*reserved)
    row = connection.execute(statement).first()
    if row is None:
        return _expect_repeat(connection, call)
    if proposed:
        connection.execute(insert(steps), [STEP_ROW.write(step) for step in proposed])
    return _spend(connection, call.run_id, call.tokens - row[0], call.dollars_u - (row[1] or 0))


def _lose(connection: Connection, fence: Fence, now: int) -> list[int]:
    hold(connection, fence)
    key = model_calls.c
    theirs = (key.run_id == fence.run_id) & (key.attempt < fence.attempt)
    statement = (
        update(model_calls)
        .where(theirs & (key.status == CallStatus.SENT.value))
        .values(status=CallStatus.LOST.value, ended_at=now)
        .returning(key.n)
    )
    return sorted(connection.execute(statement).scalars())


def _expect_repeat(connection: Connection, call: CallRecord) -> None:
    """Accept that the row is as `call` already: an earlier try wrote it, and its reply was lost."""
    row = connection.execute(select(*CALL_ROW.columns).where(_key(call))).first()
    if row is None:
        raise ValueError(f"call {call.n} of {call.run_id} was never sent")
    found = CALL_ROW.read(row)
    if CALL_ROW.write(found) != CALL_ROW.write(call):
        raise ValueError(f"call {call.n} of {call.run_id} is there as another one, {found.status}")


def _key(call: CallRecord) -> Any:
    return (model_calls.c.run_id == call.run_id) & (model_calls.c.n == call.n)


def _spend(connection: Connection, run_id: str, tokens: int, dollars_u: int) -> None:
    more = {"spent_tokens": runs.c.spent_tokens + tokens, "spent_u": runs.c.spent_u + dollars_u}
    connection.execute(update(runs).where(runs.c.run_id == run_id).values(more))
