"""Opening connections for threads and commands: the same topologies as `connections`, blocking."""

from __future__ import annotations

import socket
from typing import Any

from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as ConnectionFailed
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from app.redis.address import ASK_TIMEOUT_S, RedisAddress, Sentinels, Server, is_demoted
from app.redis.connections import common, login


def open_pool(address: RedisAddress, *, timeout_s: float | None, connect_timeout_s: float) -> ConnectionPool:
    """Return a pool; nothing connects yet."""
    chosen: Any = TcpConnection if address.socket is None else SocketConnection
    extra: dict[str, Any] = {"sentinels": Sentinels(address)} if address.service else {}
    return ConnectionPool(
        connection_class=chosen,
        address=address,
        **common(timeout_s, connect_timeout_s),
        retry=Retry(NoBackoff(), 0),
        **extra,
    )


class TcpConnection(Connection):
    """Over TCP, perhaps encrypted, perhaps to whichever server the sentinels name."""

    def __init__(self, *, address: RedisAddress, sentinels: Sentinels | None = None, **kwargs: Any) -> None:
        host, port = address.servers[0]
        self._tls = address.tls
        self._sentinels = sentinels
        super().__init__(host=host, port=port, **login(address), **kwargs)

    def _connect(self) -> socket.socket:
        if self._sentinels is not None:
            self.host, self.port = _ask_for_master(self._sentinels)
        sock: socket.socket = super()._connect()
        if self._tls is None:
            return sock
        try:
            return self._tls.context().wrap_socket(sock, server_hostname=self.host)
        except OSError:
            sock.close()
            raise

    def on_connect_check_health(self, check_health: bool = True) -> None:
        """Log in; behind sentinels also make sure that the server knows itself as the master."""
        super().on_connect_check_health(check_health=check_health)
        if self._sentinels is not None:
            self.send_command("ROLE", check_health=False)
            role = self.read_response()[0]
            if role != b"master":
                self._sentinels.misled()
                raise ConnectionFailed(f"{self.host}:{self.port} is no master but a {role.decode()}")

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read a reply; the connection ends when the server turns out to be a replica."""
        try:
            return super().read_response(*args, **kwargs)
        except ResponseError as error:
            if not is_demoted(error):
                raise
            self.disconnect()
            raise ConnectionFailed(f"{self.host}:{self.port} is no master any more: {error}") from error


class SocketConnection(UnixDomainSocketConnection):
    """Over a socket of this machine."""

    port = 0  # the library's report of a connect that timed out asks for it

    def __init__(self, *, address: RedisAddress, **kwargs: Any) -> None:
        super().__init__(path=address.socket or "", **login(address), **kwargs)


def _ask_for_master(sentinels: Sentinels) -> Server:
    said: list[str] = []
    for sentinel in sentinels.in_order():
        connection = TcpConnection(address=sentinel, **common(ASK_TIMEOUT_S, ASK_TIMEOUT_S))
        try:
            connection.connect()
            connection.send_command(*sentinels.question, check_health=False)
            master = sentinels.answered(sentinel, connection.read_response())
        except (RedisError, OSError) as error:
            said.append(f"{sentinel.shown}: {error}")
        else:
            if master is not None:
                return master
            said.append(f"{sentinel.shown} does not know it")
        finally:
            connection.disconnect()
    raise ConnectionFailed(sentinels.nobody(said))
