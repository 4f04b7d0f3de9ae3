"""Deliveries of webhooks: one row a run, written in the transaction that ends the run, or lets it wait.

The row of a wait is deleted in the transaction that ends the wait: what is not told by then is no news.

A delivery is sent by whoever moves its `next_at` on, on condition of the time that was seen: so two
senders never send the same one at once, and one that dies in the middle leaves it due again soon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from app.db.engine import Database
from app.db.row_codec import from_json, to_json
from app.db.tables import webhooks

KEPT_TRIES = 20


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery as its row has it; times in microseconds. `next_at` None: delivered, or given up.

    `tries` are the last ones: `{"at", "status", "error", "ms"}`.
    """

    run_id: str
    url: str
    created_at: int
    next_at: int | None
    attempts: int
    delivered_at: int | None
    tries: list[dict[str, Any]]


_COLUMNS = ("run_id", "url", "created_at", "next_at", "attempts", "delivered_at", "tries")
_WHOLE = [webhooks.c[name] for name in _COLUMNS]


def note_end(connection: Connection, run_id: str, url: str | None, at: int) -> None:
    """Make the delivery of a run that ends in this transaction, or begins to wait, if it asked for one."""
    if url is not None:
        row = {"run_id": run_id, "url": url, "created_at": at, "next_at": at, "attempts": 0, "tries": "[]"}
        connection.execute(insert(webhooks).values(row))


def drop_notice(connection: Connection, run_id: str) -> None:
    """Delete the delivery of a run whose wait ends in this transaction."""
    connection.execute(delete(webhooks).where(webhooks.c.run_id == run_id))


class WebhookStore:
    """Deliveries in the database. Every call may raise `StorageError`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, run_id: str) -> Delivery | None:
        """Return the delivery of a run; None before its end, and if it asked for none."""
        found = await self._select(select(*_WHOLE).where(webhooks.c.run_id == run_id))
        return found[0] if found else None

    async def due(self, now: int, limit: int) -> list[Delivery]:
        """Return deliveries whose time has come, the longest due first."""
        query = select(*_WHOLE).where(webhooks.c.next_at <= now).order_by(webhooks.c.next_at)
        return await self._select(query.limit(limit))

    async def take(self, seen: Delivery, until: int) -> bool:
        """Reserve the delivery `until` then; False if another worker was faster."""
        return await self._change(seen.run_id, seen.next_at, next_at=until)

    async def settle(
        self, taken: Delivery, until: int, tried: dict[str, Any], *, next_at: int | None, delivered: bool
    ) -> bool:
        """Write the outcome of a try that was taken `until`; False if another worker has it by now."""
        return await self._change(
            taken.run_id,
            until,
            next_at=next_at,
            attempts=taken.attempts + 1,
            delivered_at=tried["at"] if delivered else None,
            tries=to_json([*taken.tries, tried][-KEPT_TRIES:]),
        )

    async def _change(self, run_id: str, seen_next_at: int | None, **values: Any) -> bool:
        row = (webhooks.c.run_id == run_id) & (webhooks.c.next_at == seen_next_at)
        statement = update(webhooks).where(row).values(**values)
        return await self._db.write_one(lambda connection: connection.execute(statement).rowcount) > 0

    async def _select(self, query: Any) -> list[Delivery]:
        rows: Sequence[Any] = await self._db.read_one(lambda connection: connection.execute(query).all())
        return [Delivery(*row[:-1], tries=from_json(row[-1], [], "webhooks.tries")) for row in rows]
