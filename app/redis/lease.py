"""Renewing a worker's lease: synchronous, on a connection of its own.

A thread calls this, so that a busy event loop cannot starve it; the short timeout without
retries keeps a frozen Redis from holding the thread beyond the next renewal.
"""

from __future__ import annotations

from typing import Any

import redis
from redis.exceptions import NoScriptError

from app.redis.address import RedisAddress
from app.redis.clients import guard
from app.redis.connections_sync import open_pool
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
    """One worker's entry in `jobs:workers`."""

    def __init__(self, address: RedisAddress | str, prefix: str, worker_id: str, lease_s: float) -> None:
        if isinstance(address, str):
            address = RedisAddress.parse(address)
        self._pool = open_pool(address, timeout_s=_TIMEOUT_S, connect_timeout_s=_TIMEOUT_S)
        self._redis: Any = redis.Redis(connection_pool=self._pool)
        keys = Keys(prefix)
        self._workers = keys.workers()
        self._held, self._pending = keys.processing(worker_id), keys.pending()
        self._worker_id = worker_id
        self._lease_ms = int(lease_s * 1000)

    def renew(self) -> list[bytes]:
        """Extend the lease from now on; return what our list holds. Raises `RedisDown`."""
        return self._call(_RENEW, 2, self._workers, self._held, self._worker_id, self._lease_ms)

    def release(self) -> int:
        """Leave, and give back what our list still holds; return how many entries. Raises `RedisDown`."""
        return self._call(_LEAVE, 3, self._workers, self._held, self._pending, self._worker_id)

    def _call(self, script: Script, *args: str | int) -> Any:
        with guard():
            try:
                return self._redis.evalsha(script.sha, *args)
            except NoScriptError:
                return self._redis.eval(script.lua, *args)

    def close(self) -> None:
        """Close the connection."""
        self._pool.disconnect()
