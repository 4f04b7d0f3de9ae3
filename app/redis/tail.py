"""Reading `agent:tail:<run_id>`: the recent events, at least all that the database lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.core.events import Entry, seq_of
from app.redis.clients import RedisClients, guard

_USUAL = 64
"""Events in an entry, for a first guess: one call may have brought one or five hundred."""


class Tail:
    """The read side of the tails. Every method raises `RedisDown` while Redis is away."""

    def __init__(self, clients: RedisClients) -> None:
        self._redis: Any = clients.commands
        self._keys = clients.keys

    async def read(
        self, run_id: str, after: int, limit: int | None = None, *, per_call: int = _USUAL
    ) -> list[Entry]:
        """Return (seq, event as JSON) of what the tail has above `after`, in order.

        With a `limit`, up to the end of the first call to the publisher that brings so many, and
        so wherever readers start, they meet at the same places. `per_call` is a guess.
        """
        found: list[Entry] = []
        last = after
        while True:
            count = None if limit is None else 1 + (limit - len(found)) // per_call
            with guard():
                calls = await self._redis.xrange(self._keys.tail(run_id), min=f"{last + 1}-0", count=count)
            for _, fields in calls:
                for raw in fields[b"e"].split(b"\n"):
                    if (seq := seq_of(raw)) > last:  # a call that was repeated stands twice
                        last = seq
                        found.append((seq, raw))
                if limit is not None and len(found) >= limit:
                    return found
            if count is None or len(calls) < count:
                return found
            per_call = max(1, len(found) // count)

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
