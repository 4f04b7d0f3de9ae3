"""Messages to a running agent: numbered under the lock of their run, once for each idempotency key."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import Connection, func, insert, select

from app.core.agent_records import InboxMessage, MessageMode
from app.core.errors import Conflict
from app.db import run_change, run_wait
from app.db.engine import Database
from app.db.row_codec import RowCodec
from app.db.run_change import Changed
from app.db.run_create import KEY_REUSED
from app.db.tables import inbox

MOST_MESSAGES = 1000
"""Of one run: each is a part of every request that follows."""

_ROW = RowCodec(InboxMessage, inbox)


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message with its number, and what became of its run: queued, if it waited for this."""

    message: InboxMessage
    changed: Changed


class InboxStore:
    """Messages in the database. Every call may raise `StorageError`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, message: InboxMessage) -> Delivered:
        """Keep a message, and wake its run if it waits for one; or find the one that its key made before.

        Push the run if `changed` has events; the reconciler does so otherwise.

        Raises:
            NotFound: there is no such run.
            Conflict: the run has ended (`finished`) or has as many messages as one may (`inbox_full`), or
                the key was used for another message.
        """
        return await self._db.write(lambda connection: _add(connection, message))

    async def after(self, run_id: str, k: int, limit: int | None = None) -> list[InboxMessage]:
        """Return the messages behind the `k`-th, at most `limit`, in order."""
        query = select(*_ROW.columns).where((inbox.c.run_id == run_id) & (inbox.c.k > k)).order_by(inbox.c.k)
        query = query.limit(limit)
        rows = await self._db.read_one(lambda connection: connection.execute(query).all())
        return [_ROW.read(row) for row in rows]


def _add(connection: Connection, new: InboxMessage) -> Delivered:
    run_id = new.run_id
    run = run_change.locked(connection, run_id)
    if (earlier := _earlier(connection, new)) is not None:
        return Delivered(earlier, Changed(run, []))
    if run.status.terminal:
        raise Conflict(
            f"run {run_id} is {run.status} and reads no more messages: "
            'go on from it with a new run, POST /v1/runs {"prompt": …, "continue_of": "' + run_id + '"}',
            code="finished",
        )
    last = select(func.coalesce(func.max(inbox.c.k), 0)).where(inbox.c.run_id == run_id)
    numbered = replace(new, k=connection.execute(last).scalar_one() + 1)
    if numbered.k > MOST_MESSAGES:
        raise Conflict(
            f"run {run_id} has {MOST_MESSAGES} messages already: make a new run", code="inbox_full"
        )
    connection.execute(insert(inbox).values(_ROW.write(numbered)))
    interrupts = new.mode is MessageMode.INTERRUPT
    woken = run_wait.written(connection, run, new.by, new.created_at, interrupts=interrupts)
    return Delivered(numbered, woken)


def _earlier(connection: Connection, new: InboxMessage) -> InboxMessage | None:
    if new.idempotency_key is None:
        return None
    same = (inbox.c.run_id == new.run_id) & (inbox.c.idempotency_key == new.idempotency_key)
    row = connection.execute(select(*_ROW.columns).where(same)).first()
    if row is None:
        return None
    earlier = _ROW.read(row)
    said = replace(new, k=earlier.k, created_at=earlier.created_at, by=earlier.by)
    if _ROW.write(said) != _ROW.write(earlier):
        raise Conflict(KEY_REUSED, code="idempotency_key_reused")
    return earlier
