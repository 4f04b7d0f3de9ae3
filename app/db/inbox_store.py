"""Messages to a running agent: numbered under the lock of their run, once for each idempotency key."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, func, insert, select

from app.core.agent_records import InboxMessage
from app.core.errors import Conflict, NotFound
from app.core.models import RunStatus
from app.db.engine import Database
from app.db.row_codec import RowCodec, word
from app.db.run_create import KEY_REUSED
from app.db.tables import inbox, runs

MOST_MESSAGES = 1000
"""Of one run: each is a part of every request that follows."""

_ROW = RowCodec(InboxMessage, inbox)


class InboxStore:
    """Messages in the database. Every call may raise `StorageError`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, message: InboxMessage) -> InboxMessage:
        """Keep a message; return it with its number, or the one that its idempotency key made before.

        Raises:
            NotFound: there is no such run.
            Conflict: the run has ended (`finished`) or has as many messages as one may (`inbox_full`), or
                the key was used for another message.
        """
        return await self._db.write(lambda connection: _add(connection, message))

    async def after(self, run_id: str, k: int) -> list[InboxMessage]:
        """Return the messages behind the `k`-th, in order."""
        query = select(*_ROW.columns).where((inbox.c.run_id == run_id) & (inbox.c.k > k)).order_by(inbox.c.k)
        rows = await self._db.read_one(lambda connection: connection.execute(query).all())
        return [_ROW.read(row) for row in rows]


def _add(connection: Connection, new: InboxMessage) -> InboxMessage:
    run_id = new.run_id
    lock = select(runs.c.status).where(runs.c.run_id == run_id).with_for_update()
    status: str | None = connection.execute(lock).scalar()
    if status is None:
        raise NotFound(f"there is no run {run_id}")
    if (earlier := _earlier(connection, new)) is not None:
        return earlier
    if word(RunStatus, status).terminal:
        raise Conflict(f"run {run_id} is {status}: it reads no more messages", code="finished")
    last = select(func.coalesce(func.max(inbox.c.k), 0)).where(inbox.c.run_id == run_id)
    numbered = replace(new, k=connection.execute(last).scalar_one() + 1)
    if numbered.k > MOST_MESSAGES:
        raise Conflict(
            f"run {run_id} has {MOST_MESSAGES} messages already: make a new run", code="inbox_full"
        )
    connection.execute(insert(inbox).values(_ROW.write(numbered)))
    return numbered


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
