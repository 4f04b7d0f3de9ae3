"""uvicorn's protocols, with one thing added: the app may abort its connection.

ASGI can only end a response, and ending waits until the peer has read what is buffered. A
reader that does not read would keep its connection, its memory and the server's shutdown
for ever. `serve` passes these classes to uvicorn; `abort` finds the way back in the scope.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from app.core.bounded_http import BoundedHttp

_EXTENSION = "tailrun.abort"
_NO_HANDSHAKE = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 41\r\nconnection: close\r\n\r\nThis WebSocket handshake cannot be read.\n"
)
_Scope = MutableMapping[str, Any]
_App = Callable[[Any, Any, Any], Awaitable[None]]


class AbortableHttp(BoundedHttp):
    """HTTP/1.1 whose responses may abort the connection."""

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


def _with_abort(app: Any, transport: asyncio.Transport) -> Any:
    def cut() -> None:
        # Without lingering the kernel lets go of its send buffer as well, and resets the connection.
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0 and sock.family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    async def serve(scope: _Scope, receive: Any, send: Any) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), _EXTENSION: cut}
        await app(scope, receive, send)

    return serve
