"""Connections to Redis, one client per purpose.

Commands share a bounded pool that waits instead of failing; what blocks and what subscribes
has a connection of its own, or it would starve the rest. Nothing retries silently: a
repeated `LPUSH` is a second job, so callers repeat only what is idempotent. Short commands
may go over Upstash's REST API instead; then both ways must lead to one server.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import redis
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from app.config import RedisSettings
from app.core.clock import CLOCK, Clock
from app.core.errors import StorageError
from app.core.telemetry import STORAGE_ERRORS
from app.redis.address import BadAddress, RedisAddress, RestAddress
from app.redis.connections import open_pool
from app.redis.keys import Keys
from app.redis.upstash import RestCommands

BLOCK_S = 4.0
"""Longest time in seconds that a blocking pop waits; the socket waits longer, or it would cut it."""

_COMMAND_TIMEOUT_S = 3.0
_CONNECT_TIMEOUT_S = 2.0
_POOL = 64
_NONCE_TTL_S = 10


class RedisDown(StorageError):
    """Redis did not answer, or refused to serve (loading, read-only, out of memory)."""


@contextmanager
def guard() -> Generator[None, None, None]:
    """Turn every error of the redis library into `RedisDown`."""
    try:
        yield
    except (redis.RedisError, OSError, TimeoutError) as error:
        STORAGE_ERRORS.labels("redis").inc()
        raise RedisDown(f"Redis: {error or type(error).__name__}") from error


class RedisClients:
    """All connections of one process to one Redis, made on first use. Close it at the end.

    `address` None: there is only the REST API, which cannot block or subscribe.
    """

    def __init__(
        self,
        address: RedisAddress | str | None,
        prefix: str = "",
        rest: RestAddress | None = None,
        *,
        clock: Clock = CLOCK,
    ) -> None:
        self._address = RedisAddress.parse(address) if isinstance(address, str) else address
        self.keys = Keys(prefix)
        self.clock = clock
        self._protocol = self._client(_COMMAND_TIMEOUT_S, _POOL) if self._address is not None else None
        self._rest = RestCommands(rest) if rest is not None else None
        self._same_server = self._rest is None or self._protocol is None
        commands = self._rest or self._protocol
        if commands is None:
            raise BadAddress("There is no Redis: set REDIS_URL")
        self.commands: Any = commands
        """Short commands, on whichever way is set for them."""
        self._others: list[Redis] = []

    @classmethod
    def for_api(cls, settings: RedisSettings) -> RedisClients:
        """Open what an API needs: REST for short commands where it is set, the Redis protocol to follow."""
        rest = RestAddress.of(settings)
        only_rest = rest is not None and settings.url is None
        return cls(None if only_rest else RedisAddress.of(settings), settings.prefix, rest)

    @classmethod
    def for_worker(cls, settings: RedisSettings) -> RedisClients:
        """Open what a worker needs: the Redis protocol, for it blocks and subscribes."""
        if settings.url is None and settings.rest_url is not None:
            raise BadAddress(
                "A worker needs REDIS_URL: over UPSTASH_REDIS_REST_URL it can neither wait for runs nor hear "
                "a STOP. Upstash shows both addresses of a database"
            )
        return cls(RedisAddress.of(settings), settings.prefix)

    @property
    def subscribes(self) -> bool:
        """Whether there is pub/sub: not over the REST API alone."""
        return self._address is not None

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
        """Set the clock; raise `RedisDown` unless Redis answers on each way, is one, and takes writes."""
        with guard():
            for client in (self._protocol, self._rest):
                if client is not None:
                    await client.ping()
        await self.time_us()
        if not self._same_server:
            await self._check_same_server()
            self._same_server = True
        await self.check_writing()

    async def check_writing(self) -> None:
        """Raise `RedisDown`, with the reason, where Redis answers but the queue can't be written.

        Only commands that the documented rights hold: a look at each key of the queue, which one of
        another type refuses, and one small write, which a replica, a full memory and a full disk refuse.
        """
        keys, commands = self.keys, self.commands
        looks = (
            (commands.llen, (keys.pending(), keys.dead())),
            (commands.zcard, (keys.workers(), keys.delayed())),
        )
        for look, names in looks:
            for name in names:
                try:
                    with guard():
                        await look(name)
                except RedisDown as error:
                    if "WRONGTYPE" not in str(error):
                        raise
                    raise RedisDown(
                        f"the Redis key {name} is not Tailrun's, it has another type: delete or rename it, "
                        "or set REDIS_PREFIX"
                    ) from error
        with guard():
            await commands.set(keys.probe(), "1", ex=_NONCE_TTL_S)

    async def time_us(self) -> int:
        """Return Redis TIME in microseconds, and tell the clock."""
        asked_at = self.clock.asking()
        with guard():
            seconds, micros = await self.commands.time()
        self.clock.heard(now := seconds * 1_000_000 + micros, asked_at)
        return now

    async def close(self) -> None:
        """Close every connection."""
        for client in (self._protocol, *self._others):
            if client is not None:
                await client.aclose()
                await client.connection_pool.disconnect()
        self._others.clear()
        if self._rest is not None:
            await self._rest.aclose()

    async def _check_same_server(self) -> None:
        """Write through one way and read through the other; `RedisDown` when that fails."""
        nonce = secrets.token_hex(8)
        key = self.keys.nonce(nonce)
        protocol: Any = self._protocol
        rest: Any = self._rest
        with guard():
            await rest.set(key, nonce, ex=_NONCE_TTL_S)
            found = await protocol.get(key)
        if found != nonce.encode():
            raise RedisDown(
                "REDIS_URL and UPSTASH_REDIS_REST_URL reach two different servers (what is written through "
                "one is not found through the other): take both from the same database"
            )

    def _own(self, client: Redis) -> Redis:
        self._others.append(client)
        return client

    def _client(self, timeout_s: float | None, connections: int) -> Redis:
        if self._address is None:
            raise BadAddress("This needs REDIS_URL: the REST API can neither block nor subscribe")
        pool = open_pool(
            self._address,
            timeout_s=timeout_s,
            connect_timeout_s=_CONNECT_TIMEOUT_S,
            connections=connections,
        )
        return Redis(connection_pool=pool)
