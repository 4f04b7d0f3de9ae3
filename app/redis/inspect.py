"""A look into Redis for people: read-only commands, replies as the server sent them.

Serves `tailrun redis …` where no redis-cli is installed, and the check that a `REDIS_URL`
answers before anything is started on it. Nothing here changes a key.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import redis

from app.errors import InvalidRequest
from app.redis.address import RedisAddress
from app.redis.clients import guard
from app.redis.connections_sync import open_pool

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


def ask(address: RedisAddress, command: Sequence[str]) -> Generator[Any]:
    """Send one command; yield its reply, or messages without end after SUBSCRIBE.

    Replies are bytes, int, None and lists of them (RESP2). Raises `RedisDown`, `ServerSaid`.
    """
    require_read_only(command)
    follows = command[0].upper() in {"SUBSCRIBE", "PSUBSCRIBE"}
    with _connection(address, None if follows else 10.0) as connection:
        connection.send_command(*command)
        yield connection.read_response()
        while follows:
            yield connection.read_response()


def ping(address: RedisAddress) -> None:
    """Raise `RedisDown` unless a Redis answers there."""
    with guard():
        list(ask(address, ["PING"]))


@contextmanager
def _connection(address: RedisAddress, timeout_s: float | None) -> Generator[Any]:
    pool = open_pool(address, timeout_s=timeout_s, connect_timeout_s=3)
    try:
        with guard():
            connection = pool.get_connection()
        yield connection
    except (redis.ConnectionError, redis.TimeoutError, OSError):
        with guard():
            raise
    finally:
        pool.disconnect()
