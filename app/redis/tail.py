"""Reading `agent:tail:<run_id>`: the recent events, at least all that the database lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.redis.clients import RedisClients, guard
from app.redis.ring import Entry, seq_of

_USUAL = 64
"""Events in an entry, for a first guess: one call may have brought one or five hundred."""


class Tail:
    """The read side of the tails. Every method raises `RedisDown` while Redis is away."""

    def __init__(self, clients: RedisClients) -> None:
        self._redis: Any = clients.commands
        self._keys = clients.keys

    async def read(self, run_id: str, after: int, limit: int | None = None) -> list[Entry]:
        """Return (seq, event as JSON) of what the tail has above `after`, in order."""
        found: list[Entry] = []
        last, count = after, None if limit is None else 1 + limit // _USUAL
        while True:
            with guard():
                rows = await self._redis.xrange(self._keys.tail(run_id), min=f"{last + 1}-0", count=count)
            for _, fields in rows:
                for raw in fields[b"e"].split(b"\n"):
                    if (seq := seq_of(raw)) > last:  # a call that was repeated stands twice
                        last = seq
                        found.append((seq, raw))
            if limit is None or count is None or len(rows) < count or len(found) >= limit:
                return found[:limit]
            count = min(limit, 1 + (limit - len(found)) * count // max(1, len(found)))

    async def top(self, run_id: str) -> int:
        """Return the highest seq in the tail, 0 if it is empty."""
        return (await self.tops([run_id]))[run_id]

    async def tops(self, run_ids: Sequence[str]) -> dict[str, int]:
        """Return the highest seq in each tail, in one round trip."""
        with guard():
            async with self._redis.pipeline(transaction=False) as pipe:
                for run_id in run_ids:
                    pipe.xrevrange(self._keys.tail(run_id), count=1)
                found = await pipe.execute() if run_ids else []
        return {run_id: _seq(rows[0][0]) if rows else 0 for run_id, rows in zip(run_ids, found, strict=True)}


def _seq(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])
