"""A run's stream in Redis: what is published (fence, tail and channel), and how the tail is read.

`append` is the one way in while a run is owned: one script checks the fence, appends to the
tail and publishes, so that what a watcher sees is always in the tail first. A missing fence
refuses as well, except right after a take-over: only the database can say whether the asker
still owns the run (docs/decisions/0005).

Fence and tail always have an expiry: `TAIL_TTL_S` from the run's end on, and before that a day, which
every append begins anew. So Redis keeps nothing without an end, in whatever way a run ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from app.core.events import Entry, Event, EventType, seq_of
from app.redis.clients import RedisClients, guard
from app.redis.keys import Script

LIVE_TTL_S = 86_400
"""Life of the keys of a run that has not ended: a silence so long costs one question to the database."""

# KEYS  1 agent:fence:<run_id>  2 agent:tail:<run_id>
# ARGV  1 attempt  2 seq of the last event  3 lowest seq to keep  4 channel
#       5 events a message (1: each its own, else one message)  6 may raise the fence: 1 or 0
#       7 life of fence and tail from now on, in seconds  8 events, separated by newlines
# Output  nil done, else the fence that refused ('' for none)
#
# The events of one call are one entry of the tail, named after the last of them. Repeating a
# call after a lost reply is safe: XADD refuses an id that the tail has passed, and readers drop
# what they have.
_APPEND = Script("""
local fence = redis.call('GET', KEYS[1])
if fence ~= ARGV[1] then
  if ARGV[6] ~= '1' or (fence and tonumber(fence) > tonumber(ARGV[1])) then return fence or '' end
  redis.call('SET', KEYS[1], ARGV[1])
end
local added = redis.pcall('XADD', KEYS[2], ARGV[2] .. '-0', 'e', ARGV[8])
if type(added) == 'table' and not string.find(added.err, 'equal or smaller', 1, true) then return added end
if ARGV[3] ~= '0' then redis.call('XTRIM', KEYS[2], 'MINID', '~', ARGV[3]) end
if ARGV[5] == '1' then
  for event in string.gmatch(ARGV[8], '[^\\n]+') do redis.call('PUBLISH', ARGV[4], event) end
else
  redis.call('PUBLISH', ARGV[4], ARGV[8])
end
redis.call('EXPIRE', KEYS[1], ARGV[7])
redis.call('EXPIRE', KEYS[2], ARGV[7])
return nil
""")

# KEYS  1 agent:fence:<run_id>
# ARGV  1 attempt  2 life of the fence in seconds
# Output  the fence that is set now
_RAISE = Script("""
local fence = redis.call('GET', KEYS[1])
if fence and tonumber(fence) >= tonumber(ARGV[1]) then return fence end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return ARGV[1]
""")


@dataclass(frozen=True, slots=True)
class PublishRefused:
    """The fence that refused it; None: there was none, ask the database."""

    fence: int | None


class Publisher:
    """Publishes events and signals. Every method raises `RedisDown` while Redis is away."""

    def __init__(self, clients: RedisClients, *, batch: int = 64, tail_ttl_s: int = 300) -> None:
        self._redis: Any = clients.commands
        self._keys = clients.keys
        self._batch = min(batch, 2)
        self._tail_ttl_s = tail_ttl_s

    async def append(
        self,
        run_id: str,
        attempt: int,
        first_seq: int,
        events: Sequence[bytes],
        *,
        keep_from: int,
        may_raise: bool = False,
        ended: bool = False,
    ) -> PublishRefused | None:
        """Append encoded events with consecutive `seq`; the tail drops what lies below `keep_from`.

        `may_raise`: the caller has just taken the run over in the database, so the fence follows.
        `ended`: these are the run's last ones, so that fence and tail may go after a while.
        """
        keys = (self._keys.fence(run_id), self._keys.tail(run_id))
        channel = self._keys.logs(run_id)
        life_s = self._tail_ttl_s if ended else LIVE_TTL_S
        last, payload = first_seq + len(events) - 1, b"\n".join(events)
        args = (attempt, last, keep_from, channel, self._batch, int(may_raise), life_s, payload)
        with guard():
            fence = await _APPEND(self._redis, keys, args)
        if fence is None:
            return None
        return PublishRefused(int(fence) if fence else None)

    async def raise_fence(self, run_id: str, attempt: int) -> int:
        """Let only `attempt` or a later one publish; return the fence that is set."""
        with guard():
            return int(await _RAISE(self._redis, (self._keys.fence(run_id),), (attempt, LIVE_TTL_S)))

    async def announce(self, events: Sequence[Event]) -> None:
        """Publish events that are committed already, outside of an attempt.

        With the run's end its fence and tail, if earlier attempts left any, may go after a while.
        """
        if not events:
            return
        run_id, payload = events[0].run_id, b"\n".join(event.encode() for event in events)
        with guard():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.publish(self._keys.logs(run_id), payload)
                if events[-1].type is EventType.END:
                    pipe.expire(self._keys.fence(run_id), self._tail_ttl_s)
                    pipe.expire(self._keys.tail(run_id), self._tail_ttl_s)
                await pipe.execute()

    async def revoked(self, token_id: str) -> None:
        """Tell every API process that a token is no longer valid; each looks it up by itself, too."""
        with guard():
            await self._redis.publish(self._keys.tokens(), token_id)

    async def signal(self, run_id: str, signal: str) -> None:
        """Send a signal to whichever worker has the run; the request itself is in the row."""
        with guard():
            await self._redis.publish(
                self._keys.control(), orjson.dumps({"run_id": run_id, "signal": signal})
            )


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
                    if (seq := seq_of(raw)) > last:  # a call that was repeated is there twice
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
