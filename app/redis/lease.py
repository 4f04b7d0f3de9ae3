"""Renewing a worker's lease, on a connection of its own.

A thread with a loop of its own calls this, so that a busy event loop cannot starve it; the short timeout
without retries keeps a frozen Redis from delaying the next renewal.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from app.redis.address import RedisAddress
from app.redis.clients import guard
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
# One step: a list whose worker no longer stands among the workers would be seen by nobody.
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
