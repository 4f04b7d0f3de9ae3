"""Connections to Redis, one client per purpose.

Commands share a bounded pool that waits instead of failing; what blocks and what subscribes
has a connection of its own, or it would starve the rest. Nothing retries silently: a
repeated `LPUSH` is a second job, so callers repeat only what is idempotent.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.errors import StorageError
from app.redis.keys import Keys

BLOCK_S = 4.0
"""Longest time in seconds that a blocking pop waits; the socket waits longer, or it would cut it."""

_COMMAND_TIMEOUT_S = 3.0
_CONNECT_TIMEOUT_S = 2.0
_POOL = 64


class RedisDown(StorageError):
    """Redis did not answer, or refused to serve (loading, read-only, out of memory)."""


@contextmanager
def guard() -> Generator[None, None, None]:
    """Turn every error of the redis library into `RedisDown`."""
    try:
        yield
    except (redis.RedisError, OSError, TimeoutError) as error:
        raise RedisDown(f"Redis: {error or type(error).__name__}") from error


class RedisClients:
    """All connections of one process to one Redis, made on first use. Close it at the end."""

    def __init__(self, url: str, prefix: str = "") -> None:
        self.url = url
        self.keys = Keys(prefix)
        self.commands = self._client(_COMMAND_TIMEOUT_S, _POOL)
        self._others: list[Redis] = []

    def blocking(self) -> Redis:
        """Return a client of one connection for blocking pops of at most `BLOCK_S`."""
        return self._own(self._client(BLOCK_S + 2, 1))

    def pubsub_connection(self) -> PubSub:
        """Return a subscriber on a connection of its own (RESP2: its parser is the fastest)."""
        return self._own(self._client(None, 2)).pubsub()

    async def release(self, pubsub: PubSub) -> None:
        """Close a subscriber and its client."""
        client = next((c for c in self._others if c.connection_pool is pubsub.connection_pool), None)
        await pubsub.aclose()
        if client is not None:
            self._others.remove(client)
            await client.connection_pool.disconnect()

    async def ping(self) -> None:
        """Raise `RedisDown` unless Redis answers."""
        with guard():
            await self.commands.ping()

    async def close(self) -> None:
        """Close every connection."""
        for client in (self.commands, *self._others):
            await client.aclose()
            await client.connection_pool.disconnect()
        self._others.clear()

    def _own(self, client: Redis) -> Redis:
        self._others.append(client)
        return client

    def _client(self, timeout_s: float | None, connections: int) -> Redis:
        pool = BlockingConnectionPool.from_url(
            self.url,
            max_connections=connections,
            timeout=5,
            socket_timeout=timeout_s,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            protocol=2,
        )
        return Redis(connection_pool=pool)
