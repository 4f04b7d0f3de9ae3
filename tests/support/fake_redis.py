"""Redis in this process, for tests of what is done with short commands and scripts.

Needs no server and no emptying. It does not block, publish to others, persist or run out of memory:
claims that wait, streams, leases and outages are tested with a real one.
"""

from __future__ import annotations

import fakeredis

from app.redis.clients import RedisClients

_NOWHERE = "redis://127.0.0.1:1/0"
"""Nothing answers there, so a command that takes a way of its own to Redis fails."""


def fake_clients() -> RedisClients:
    """Return clients whose short commands go to a Redis of their own, which is empty."""
    clients = RedisClients(_NOWHERE)
    clients.commands = fakeredis.FakeAsyncRedis()
    return clients
