"""Renewing a worker's lease: synchronous, on a connection of its own.

A thread calls this, so that a busy event loop cannot starve it; the short timeout without
retries keeps a frozen Redis from holding the thread beyond the next renewal.
"""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError
from redis.retry import Retry

from app.redis.clients import guard
from app.redis.keys import Keys
from app.redis.scripts import Script

_TIMEOUT_S = 1.0

# KEYS  1 jobs:workers  2 jobs:processing:<worker>
# ARGV  1 worker id  2 lease in ms
# Output  {entries that the worker holds}
_RENEW = Script("""
local t = redis.call('TIME')
redis.call('ZADD', KEYS[1], t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[2], ARGV[1])
return redis.call('LRANGE', KEYS[2], 0, -1)
""")


class LeaseClient:
    """One worker's entry in `jobs:workers`."""

    def __init__(self, url: str, prefix: str, worker_id: str, lease_s: float) -> None:
        self._redis: Any = redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        keys = Keys(prefix)
        self._workers = keys.workers()
        self._held = keys.processing(worker_id)
        self._worker_id = worker_id
        self._lease_ms = int(lease_s * 1000)

    def renew(self) -> list[bytes]:
        """Extend the lease from now on; return what our list holds. Raises `RedisDown`."""
        args = (2, self._workers, self._held, self._worker_id, self._lease_ms)
        with guard():
            try:
                return self._redis.evalsha(_RENEW.sha, *args)
            except NoScriptError:
                return self._redis.eval(_RENEW.lua, *args)

    def release(self) -> None:
        """Leave: the worker holds nothing any more. Raises `RedisDown`."""
        with guard():
            self._redis.zrem(self._workers, self._worker_id)

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()
