"""uvicorn's protocols, with three things added: an abort, what the peer has taken, HTTP/1.0 without chunks.

ASGI can only end a response, and ending waits until the peer has read what is buffered. A
reader that does not read would keep its connection, its memory and the server's shutdown
without end. `serve` passes these classes to uvicorn; `abort` finds the way back in the scope. A peer that
reads slowly is told from one that does not by `taken`: how much it has acknowledged by now.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import MutableMapping
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from app.core.bounded_http import BoundedHttp

_EXTENSION, _TAKEN = "tailrun.abort", "tailrun.taken"
_TCP_INFO, _INFO_BYTES, _BYTES_ACKED = 11, 128, 120
"""Of Linux (linux/tcp.h, `struct tcp_info`): the option, as much of it as is looked at, and where in it
`tcpi_bytes_acked` is."""
_NO_HANDSHAKE = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 41\r\nconnection: close\r\n\r\nThis WebSocket handshake cannot be read.\n"
)
_Scope = MutableMapping[str, Any]


class _UntilClose(int):
    """The length of a body that ends with its connection, as uvicorn counts down what is left to send."""

    def __lt__(self, other: object) -> bool:
        """Whether more was sent than there is: never."""
        return False

    def __sub__(self, other: object) -> _UntilClose:
        """Take off what was sent."""
        return self

    def __ne__(self, other: object) -> bool:
        """Whether it differs from what is left at the end: never."""
        return False

    __hash__ = int.__hash__


class AbortableHttp(BoundedHttp):
    """HTTP/1.1 whose responses may abort the connection; HTTP/1.0 whose responses end with it."""

    def on_headers_complete(self) -> None:
        """Hand the request over."""
        super().on_headers_complete()
        cycle = self._answering()
        if cycle is not None and self.scope["http_version"] == "1.0":
            cycle.chunked_encoding, cycle.expected_content_length = False, _UntilClose()

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Remember the way to the transport for every request on it."""
        super().connection_made(transport)
        self.app = _with_abort(self.app, transport)


class AbortableWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket that the app may abort."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the way to the transport."""
        super().connection_made(transport)
        self.app = _with_abort(self.app, self.transport)

    def send_keepalive_ping(self) -> None:
        """Ask for a sign of life, and note what the peer had taken by then."""
        self._taken = _taken(self.transport)
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        """Take what was read meanwhile for a sign of life: the ping waits behind all that is unread."""
        before, self._taken = self._taken, _taken(self.transport)
        if self._taken != before and self.ping_timeout is not None:
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
        else:
            super().keepalive_timeout()

    def data_received(self, data: bytes) -> None:
        """Take what came; the first is a whole handshake, and one that can't be read has no sequel."""
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(_NO_HANDSHAKE)
            self.transport.close()


def abort(scope: _Scope) -> bool:
    """Cut the connection, unsent bytes and all; False under a server that cannot."""
    cut = scope.get("extensions", {}).get(_EXTENSION)
    if cut is None:
        return False
    cut()
    return True


def taken(scope: _Scope) -> int:
    """Return how many bytes the peer has taken so far; only that it changes means something."""
    count = scope.get("extensions", {}).get(_TAKEN)
    return 0 if count is None else count()


def _taken(transport: asyncio.Transport) -> int:
    """Ask the kernel; where it does not tell, what has left our own buffer counts."""
    sock = transport.get_extra_info("socket")
    if sys.platform == "linux" and sock is not None and sock.fileno() >= 0:
        with contextlib.suppress(OSError):  # closed in between, or no TCP
            info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_BYTES)
            if len(info) == _INFO_BYTES:
                return struct.unpack_from("Q", info, _BYTES_ACKED)[0]
    return -transport.get_write_buffer_size()


def _with_abort(app: Any, transport: asyncio.Transport) -> Any:
    def cut() -> None:
        # Without lingering the kernel drops its send buffer as well, and resets the connection.
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0 and sock.family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def count() -> int:
        return _taken(transport)

    async def serve(scope: _Scope, receive: Any, send: Any) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), _EXTENSION: cut, _TAKEN: count}
        await app(scope, receive, send)

    return serve
