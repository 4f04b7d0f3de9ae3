"""A look into Redis for people: read-only commands, replies as the server sent them.

Serves `tailrun redis …` where no redis-cli is installed, and the check that a `REDIS_URL`
answers before anything is started on it. Nothing here changes a key.

What a Redis server's own settings would cost: said in the log and on `/readyz`, stopping nothing.

Asks `INFO` only. A managed service that refuses it, or leaves out what is looked for, is
taken to know what it does.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import redis

from app.core.errors import InvalidRequest
from app.redis.address import RedisAddress
from app.redis.clients import RedisClients, RedisDown, guard
from app.redis.connections import open_pool

READ_COMMANDS = frozenset(
    """
    BITCOUNT DBSIZE ECHO EXISTS EXPIRETIME GET GETBIT GETRANGE HEXISTS HGET HGETALL HKEYS HLEN HMGET HSCAN
    HSTRLEN HVALS INFO KEYS LASTSAVE LINDEX LLEN LPOS LRANGE MGET PEXPIRETIME PING PSUBSCRIBE PTTL RANDOMKEY
    SCAN SCARD SISMEMBER SMEMBERS SRANDMEMBER SSCAN STRLEN SUBSCRIBE TIME TTL TYPE XLEN XRANGE XREAD XREVRANGE
    ZCARD ZCOUNT ZLEXCOUNT ZMSCORE ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYSCORE ZREVRANK
    ZSCAN ZSCORE
    """.split(),  # noqa: SIM905 - a list of 60 lines reads worse
)
"""Commands that only read. What blocks or takes (BLPOP, GETDEL …) or stores (SORT) is not among them."""

READ_SUBCOMMANDS = {
    "CLIENT": frozenset({"LIST", "INFO"}),
    "MEMORY": frozenset({"USAGE"}),
    "OBJECT": frozenset({"ENCODING", "FREQ", "IDLETIME", "REFCOUNT"}),
    "PUBSUB": frozenset({"CHANNELS", "NUMPAT", "NUMSUB"}),
    "XINFO": frozenset({"CONSUMERS", "GROUPS", "STREAM"}),
}

ServerSaid = redis.ResponseError
"""An error that the server answered, such as WRONGTYPE."""


def require_read_only(command: Sequence[str]) -> None:
    """Raise `InvalidRequest` unless the command only reads."""
    name = command[0].upper()
    if name in READ_COMMANDS:
        return
    known = READ_SUBCOMMANDS.get(name)
    if known is not None and len(command) > 1 and command[1].upper() in known:
        return
    pairs = {f"{first} {second}" for first, seconds in READ_SUBCOMMANDS.items() for second in seconds}
    allowed = ", ".join(sorted(READ_COMMANDS | pairs))
    raise InvalidRequest(f"{name} is not among the commands that only read. These are: {allowed}")


async def ask(address: RedisAddress, command: Sequence[str]) -> AsyncGenerator[Any]:
    """Send one command; yield its reply, or messages without end after SUBSCRIBE.

    Replies are bytes, int, None and lists of them (RESP2). Raises `RedisDown`, `ServerSaid`.
    """
    require_read_only(command)
    follows = command[0].upper() in {"SUBSCRIBE", "PSUBSCRIBE"}
    async with _connection(address, None if follows else 10.0) as connection:
        await connection.send_command(*command)
        yield await connection.read_response()
        while follows:
            yield await connection.read_response()


async def ping(address: RedisAddress) -> None:
    """Raise `RedisDown` unless a Redis answers there."""
    with guard():
        async for _ in ask(address, ["PING"]):
            pass


@asynccontextmanager
async def _connection(address: RedisAddress, timeout_s: float | None) -> AsyncGenerator[Any]:
    pool = open_pool(address, timeout_s=timeout_s, connect_timeout_s=3, connections=1)
    try:
        with guard():
            connection = await pool.get_connection()
        yield connection
    except (redis.ConnectionError, redis.TimeoutError, OSError):
        with guard():
            raise
    finally:
        await pool.disconnect()


OLDEST = (6, 2)
_ASK_EVERY_S = 60.0


class ServerReport:
    """The remarks about one server, asked for at most once a minute."""

    def __init__(self, clients: RedisClients) -> None:
        self._redis: Any = clients.commands
        self._asked_at = float("-inf")
        self.known: list[str] = []
        """The last answer."""

    async def remarks(self) -> list[str]:
        """Return what a person should know; the last answer while Redis is away."""
        if time.monotonic() - self._asked_at >= _ASK_EVERY_S:
            try:
                with guard():
                    info = await self._redis.info()
            except RedisDown:
                return self.known
            self._asked_at = time.monotonic()
            self.known = remarks_on(info)
        return self.known


def remarks_on(info: dict[str, Any]) -> list[str]:
    """Judge a server by its `INFO`; what is not told is not judged."""
    found: list[str] = []
    version = str(info.get("redis_version", ""))
    if version and _number(version) < OLDEST:
        found.append(f"Redis {version} is older than 6.2, which the queue needs: claims will fail")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(
            f"Redis evicts keys when memory is short (maxmemory-policy {policy}): queued entries may vanish "
            "until the reconciler pushes them again. Set noeviction"
        )
    if info.get("aof_enabled", 1) == 0:
        found.append(
            "Redis keeps no append-only file: after a restart of Redis the queue is filled again from the "
            "database, lines not committed yet and dead letters are lost. Set appendonly yes"
        )
    return found


def _number(version: str) -> tuple[int, ...]:
    """Return a version's first two parts; one that cannot be read is new enough."""
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else OLDEST
