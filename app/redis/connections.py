"""Opening connections for the event loop: over TCP, TLS, a unix socket, or through sentinels.

A connection belongs to the master for as long as it lives: each connect asks the sentinels
and then the server itself for its role, and a server that says it is a replica now loses the
connection, so that the next one finds the new master.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio.connection import (
    AbstractConnection,
    BlockingConnectionPool,
    Connection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionFailed
from redis.exceptions import RedisError, ResponseError

from app.redis.address import ASK_TIMEOUT_S, RedisAddress, Sentinels, Server, is_demoted


def open_pool(
    address: RedisAddress, *, timeout_s: float | None, connect_timeout_s: float, connections: int
) -> BlockingConnectionPool:
    """Return a pool that waits when all its connections are out; nothing connects yet."""
    chosen: Any = TcpConnection if address.socket is None else SocketConnection
    extra: dict[str, Any] = {"sentinels": Sentinels(address)} if address.service else {}
    return BlockingConnectionPool(
        max_connections=connections,
        timeout=5,
        connection_class=chosen,
        address=address,
        **common(timeout_s, connect_timeout_s),
        retry=Retry(NoBackoff(), 0),
        **extra,
    )


def common(timeout_s: float | None, connect_timeout_s: float) -> dict[str, Any]:
    """Return what holds for every connection: short, silent, nothing sent that an ACL has to allow."""
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "retry_on_error": [],
        "protocol": 2,
        "driver_info": None,
    }


def login(address: RedisAddress) -> dict[str, Any]:
    """Return how to get in and which database to use."""
    return {"username": address.username, "password": address.password, "db": address.db}


class _Reset(AbstractConnection):
    """A connection that was reset a moment ago is an error of the connection also in uvloop's words.

    Its transport raises RuntimeError then, which the library passes on.
    """

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Send a command's bytes."""
        try:
            await super().send_packed_command(*args, **kwargs)
        except RuntimeError as error:
            if "closed" not in str(error):
                raise
            raise ConnectionFailed(f"the connection was closed: {error}") from error


class TcpConnection(_Reset, Connection):
    """Over TCP, perhaps encrypted, perhaps to whichever server the sentinels name."""

    def __init__(self, *, address: RedisAddress, sentinels: Sentinels | None = None, **kwargs: Any) -> None:
        host, port = address.servers[0]
        self._tls = address.tls
        self._sentinels = sentinels
        super().__init__(host=host, port=port, **login(address), **kwargs)

    def _connection_arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = dict(super()._connection_arguments())
        return arguments if self._tls is None else arguments | {"ssl": self._tls.context()}

    async def _connect(self) -> None:
        if self._sentinels is not None:
            self.host, self.port = await _ask_for_master(self._sentinels)
        await super()._connect()

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Log in; behind sentinels also make sure that the server knows itself as the master."""
        await super().on_connect_check_health(check_health=check_health)
        if self._sentinels is not None:
            await self.send_command("ROLE", check_health=False)
            role = (await self.read_response())[0]
            if role != b"master":
                self._sentinels.misled()
                raise ConnectionFailed(f"{self.host}:{self.port} is no master but a {role.decode()}")

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read a reply; the connection ends when the server turns out to be a replica."""
        try:
            return await super().read_response(*args, **kwargs)
        except ResponseError as error:
            if not is_demoted(error):
                raise
            await self.disconnect(nowait=True)
            raise ConnectionFailed(f"{self.host}:{self.port} is no master any more: {error}") from error


class SocketConnection(_Reset, UnixDomainSocketConnection):
    """Over a socket of this machine."""

    def __init__(self, *, address: RedisAddress, **kwargs: Any) -> None:
        super().__init__(path=address.socket or "", **login(address), **kwargs)


async def _ask_for_master(sentinels: Sentinels) -> Server:
    said: list[str] = []
    for sentinel in sentinels.in_order():
        connection = TcpConnection(address=sentinel, **common(ASK_TIMEOUT_S, ASK_TIMEOUT_S))
        try:
            await connection.connect()
            await connection.send_command(*sentinels.question, check_health=False)
            master = sentinels.answered(sentinel, await connection.read_response())
        except (RedisError, OSError, TimeoutError) as error:
            said.append(f"{sentinel.shown}: {error}")
        else:
            if master is not None:
                return master
            said.append(f"{sentinel.shown} does not know it")
        finally:
            await connection.disconnect(nowait=True)
    raise ConnectionFailed(sentinels.no_master(said))
