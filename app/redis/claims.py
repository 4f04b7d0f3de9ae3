"""The worker's side of the queue: claim, ack, delay, bury, give back.

What a worker takes moves to `jobs:processing:<worker_id>` in the same command and stays
there until the outcome is committed in the database, so that a crash loses nothing. Every script
here may be repeated after a lost reply: it acts only while the entry is still held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from app.core.clock import format_ts
from app.redis.clients import BLOCK_S, RedisClients, guard
from app.redis.keys import Script
from app.redis.queue import due_ms

DEAD_LIMIT = 10_000

# KEYS  1 jobs:pending  2 jobs:processing:<worker>  3 jobs:workers
# ARGV  1 most to claim  2 worker id  3 lease in ms  4… entries to ack
# Output  {now in µs, {entries claimed}}
#
# What ends first has mostly come first and is at the right end, so LREM looks from there.
_CLAIM = Script("""
local t = redis.call('TIME')
for i = 4, #ARGV do redis.call('LREM', KEYS[2], -1, ARGV[i]) end
local taken = {}
if tonumber(ARGV[1]) > 0 then
  taken = redis.call('RPOP', KEYS[1], ARGV[1]) or {}
  if #taken > 0 then
    redis.call('LPUSH', KEYS[2], unpack(taken))
    redis.call('ZADD', KEYS[3], 'NX', t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[3], ARGV[2])
  end
end
return {t[1] .. string.format('%06d', t[2]), taken}
""")

# KEYS  1 jobs:processing:<worker>  2 jobs:pending
# ARGV  1 entry
# Output  1 moved to the right end (runs next), 0 not held any more
_REQUEUE = Script("""
local held = redis.call('LREM', KEYS[1], 1, ARGV[1])
if held == 1 then redis.call('RPUSH', KEYS[2], ARGV[1]) end
return held
""")

# KEYS  1 jobs:processing:<worker>  2 jobs:delayed
# ARGV  1 entry held  2 entry to come back as  3 due time in ms
# Output  1 moved, 0 not held any more
_DELAY = Script("""
local held = redis.call('LREM', KEYS[1], 1, ARGV[1])
if held == 1 then redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2]) end
return held
""")

# KEYS  1 jobs:processing:<worker>  2 jobs:dead
# ARGV  1 entry  2 dead letter  3 most letters to keep
# Output  1 moved, 0 not held any more
_DEAD_LETTER = Script("""
local held = redis.call('LREM', KEYS[1], 1, ARGV[1])
if held == 1 then
  redis.call('LPUSH', KEYS[2], ARGV[2])
  redis.call('LTRIM', KEYS[2], 0, ARGV[3] - 1)
end
return held
""")

# KEYS  1 jobs:processing:<worker>
# ARGV  1 entry
# Output  1 added, 0 it was there
_HOLD = Script("""
if redis.call('LPOS', KEYS[1], ARGV[1]) then return 0 end
redis.call('LPUSH', KEYS[1], ARGV[1])
return 1
""")

_LACK_S = 10
"""How long a worker's report of what it lacks is valid; it reports every second."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of one claim: raw entries, oldest first, and Redis TIME in microseconds."""

    entries: list[bytes]
    now: int


class Claims:
    """One worker's hold on the queue. Every method raises `RedisDown` while Redis is away."""

    def __init__(self, clients: RedisClients, worker_id: str, lease_s: float) -> None:
        self._redis: Any = clients.commands
        self._blocking: Any = clients.blocking()
        self._keys = clients.keys
        self._held = clients.keys.processing(worker_id)
        self._worker_id = worker_id
        self._lease_ms = int(lease_s * 1000)
        self._clock = clients.clock

    async def claim(self, free: int, acks: Sequence[bytes] = ()) -> Claim:
        """Ack what is finished and take up to `free` entries, in one call.

        A lost reply leaves entries in our list that we do not know: see `worker.ownership`.
        """
        keys = (self._keys.pending(), self._held, self._keys.workers())
        asked_at = self._clock.asking()
        with guard():
            now, entries = await _CLAIM(self._redis, keys, (free, self._worker_id, self._lease_ms, *acks))
        self._clock.heard(int(now), asked_at)
        return Claim(entries, int(now))

    async def wait(self) -> bytes | None:
        """Wait up to `BLOCK_S` for an entry and take it: the wake-up of an idle worker."""
        with guard():
            return await self._blocking.blmove(self._keys.pending(), self._held, BLOCK_S, "RIGHT", "LEFT")

    async def say_lack(self, text: str) -> None:
        """Say for the next seconds why this worker, though it is alive, claims nothing."""
        with guard():
            await self._redis.set(self._keys.lack(self._worker_id), text, ex=_LACK_S)

    def now_us(self) -> int:
        """Return Redis TIME as counted on from what Redis said last, without asking again."""
        return self._clock.now_us()

    async def requeue(self, entry: bytes) -> bool:
        """Put an entry back to where it is taken next; it counts nothing."""
        with guard():
            return bool(await _REQUEUE(self._redis, (self._held, self._keys.pending()), (entry,)))

    async def delay(self, entry: bytes, again: bytes, due_us: int) -> bool:
        """Exchange an entry for one that comes back at `due_us`."""
        keys = (self._held, self._keys.delayed())
        with guard():
            return bool(await _DELAY(self._redis, keys, (entry, again, due_ms(due_us))))

    async def dead_letter(
        self, entry: bytes, reason: str, now: int, error: dict[str, Any] | None = None
    ) -> bool:
        """Move an entry to the dead letters, with the reason and the raw text."""
        keys = (self._held, self._keys.dead())
        with guard():
            return bool(
                await _DEAD_LETTER(self._redis, keys, (entry, _letter(entry, reason, now, error), DEAD_LIMIT))
            )

    async def reregister(self, entry: bytes) -> bool:
        """Enter an entry into our list again, after Redis lost it or a reaper took it."""
        with guard():
            return bool(await _HOLD(self._redis, (self._held,), (entry,)))


def _letter(entry: bytes, reason: str, now: int, error: dict[str, Any] | None) -> bytes:
    try:
        body: Any = orjson.loads(entry)
    except orjson.JSONDecodeError:
        body = None
    known = body if isinstance(body, dict) else None
    return orjson.dumps(
        {
            "run_id": known.get("run_id") if known else None,
            "reason": reason,
            "error": error,
            "at": format_ts(now),
            "entry": known,
            "raw": entry.decode(errors="replace"),
        },
    )
