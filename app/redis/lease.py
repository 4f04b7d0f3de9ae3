"""A worker's lease: how it is renewed, and the tick that finds dead ones.

Renewing has a connection of its own. A thread with a loop of its own calls it, so that a busy event loop
cannot starve it; the short timeout without retries keeps a frozen Redis from delaying the next renewal.

Every worker and every API ticks once a second: due entries, dead leases. Redis TIME is the only clock. A
tick changes nothing but Redis: the worker that takes a reaped entry decides by the run's row. The API ticks
too, for a lone worker cannot see its own death: with no other process to tick, its silence would look like
that of Redis (docs/decisions/0025).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from app.core.telemetry import get_logger
from app.redis.address import RedisAddress
from app.redis.clients import RedisClients, guard
from app.redis.connections import open_pool
from app.redis.keys import Keys, Script

_TIMEOUT_S = 1.0

# KEYS  1 jobs:workers  2 jobs:processing:<worker>
# ARGV  1 worker id  2 lease in ms
# Output  {entries that the worker holds}
_RENEW = Script("""
local t = redis.call('TIME')
redis.call('ZADD', KEYS[1], t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[2], ARGV[1])
return redis.call('LRANGE', KEYS[2], 0, -1)
""")


# KEYS  1 jobs:workers  2 jobs:processing:<worker>  3 jobs:pending
# ARGV  1 worker id
# Output  number of entries given back, to the right end (they run next, the oldest first)
#
# One step: a list whose worker is no longer among the workers would never be read.
_LEAVE = Script("""
local n = 0
while redis.call('LMOVE', KEYS[2], KEYS[3], 'LEFT', 'RIGHT') do n = n + 1 end
redis.call('ZREM', KEYS[1], ARGV[1])
return n
""")


class LeaseClient:
    """One worker's entry in `jobs:workers`. All of its calls belong to one event loop."""

    def __init__(self, address: RedisAddress | str, prefix: str, worker_id: str, lease_s: float) -> None:
        if isinstance(address, str):
            address = RedisAddress.parse(address)
        self._pool = open_pool(address, timeout_s=_TIMEOUT_S, connect_timeout_s=_TIMEOUT_S, connections=1)
        self._redis: Any = Redis(connection_pool=self._pool)
        keys = Keys(prefix)
        self._places = (keys.workers(), keys.processing(worker_id))
        self._pending = keys.pending()
        self._worker_id = worker_id
        self._lease_ms = int(lease_s * 1000)

    async def renew(self) -> list[bytes]:
        """Extend the lease from now on; return what our list holds. Raises `RedisDown`."""
        with guard():
            return await _RENEW(self._redis, self._places, (self._worker_id, self._lease_ms))

    async def release(self) -> int:
        """Leave, and give back what our list still holds; return how many entries. Raises `RedisDown`."""
        with guard():
            return int(await _LEAVE(self._redis, (*self._places, self._pending), (self._worker_id,)))

    async def close(self) -> None:
        """Close the connection."""
        await self._pool.disconnect()


TICK_EVERY_S = 1.0

_DUE_BATCH = 500

_log = get_logger(__name__)

# KEYS  1 jobs:tick  2 jobs:workers  3 jobs:delayed  4 jobs:pending
# ARGV  1 lease in ms  2 most entries to make due
# Output  {now in µs, number made due, {ids of workers whose lease is dead}}
#
# A due entry of high priority goes to the right end, where it is taken next (several: the one that
# was due first), every other to the left.
#
# jobs:tick holds "<now> <hold>": a tick that comes late, or finds a time in the future, means
# that Redis was away, so that live workers could not renew; no worker is reaped until `hold`.
_TICK = Script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease = tonumber(ARGV[1])
local last, hold = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d+)$')
last, hold = tonumber(last), tonumber(hold)
if not last or last > now or now - last > lease - 2000 or hold > now + lease then hold = now + lease end
redis.call('SET', KEYS[1], string.format('%.0f %.0f', now, hold))
local due = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, ARGV[2])
local high = {}
for _, entry in ipairs(due) do
  redis.call('ZREM', KEYS[3], entry)
  local ok, job = pcall(cjson.decode, entry)
  if ok and type(job) == 'table' and job.priority == 'high' then
    table.insert(high, 1, entry)
  else
    redis.call('LPUSH', KEYS[4], entry)
  end
end
for _, entry in ipairs(high) do redis.call('RPUSH', KEYS[4], entry) end
local dead = {}
if hold <= now then dead = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now) end
return {t[1] .. string.format('%06d', t[2]), #due, dead}
""")

# KEYS  1 jobs:workers  2 jobs:processing:<worker>  3 jobs:pending
# ARGV  1 worker id
# Output  number of entries given back, to the right end (they run next, the oldest first)
_REAP = Script("""
local t = redis.call('TIME')
local deadline = redis.call('ZSCORE', KEYS[1], ARGV[1])
if deadline and tonumber(deadline) > t[1] * 1000 + math.floor(t[2] / 1000) then return 0 end
local n = 0
while redis.call('LMOVE', KEYS[2], KEYS[3], 'LEFT', 'RIGHT') do n = n + 1 end
redis.call('ZREM', KEYS[1], ARGV[1])
return n
""")

# KEYS  1 jobs:leader:<role>
# ARGV  1 who  2 life in ms
# Output  1 leader (new or renewed), 0 another process is
_LEAD = Script("""
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")


@dataclass(frozen=True, slots=True)
class Tick:
    """The result of one tick: entries made due, and per reaped worker the entries given back."""

    due: int
    reaped: dict[str, int]


class Ticks:
    """The commands of a tick. Every method raises `RedisDown` while Redis is away."""

    def __init__(self, clients: RedisClients, lease_s: float) -> None:
        self._redis: Any = clients.commands
        self._keys, self._clock = clients.keys, clients.clock
        self._lease_ms = int(lease_s * 1000)

    async def tick(self) -> Tick:
        """Make due entries pending, give back what dead workers hold, and set this process's clock."""
        keys = (self._keys.tick(), self._keys.workers(), self._keys.delayed(), self._keys.pending())
        asked_at = self._clock.asking()
        with guard():
            now, due, dead = await _TICK(self._redis, keys, (self._lease_ms, _DUE_BATCH))
        self._clock.heard(int(now), asked_at)
        reaped = {worker.decode(): await self.reap(worker.decode()) for worker in dead}
        for worker_id, entries in reaped.items():
            _log.warning("lease ran out, entries given back", worker_id=worker_id, entries=entries)
        return Tick(due, reaped)

    async def reap(self, worker_id: str) -> int:
        """Give back what a worker holds, unless its lease lives."""
        keys = (self._keys.workers(), self._keys.processing(worker_id), self._keys.pending())
        with guard():
            return int(await _REAP(self._redis, keys, (worker_id,)))

    async def lead(self, role: str, who: str, ttl_s: float) -> bool:
        """Become or stay the leader of a periodic work for `ttl_s`."""
        with guard():
            return bool(await _LEAD(self._redis, (self._keys.leader(role),), (who, int(ttl_s * 1000))))
