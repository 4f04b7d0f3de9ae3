"""The limit of this machine: uvloop, bare TCP, each piece of input framed once and written to all."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, ClassVar

import uvloop

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


class Watcher(asyncio.Protocol):
    """One reader; whatever it asks for, it gets the stream."""

    everyone: ClassVar[set[Any]] = set()

    def connection_made(self, transport: Any) -> None:
        """Begin the answer at once."""
        self.transport = transport
        transport.write(HEAD)
        self.everyone.add(transport)

    def data_received(self, data: bytes) -> None:
        """Pay no heed to the request."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self.everyone.discard(self.transport)


class Feed(asyncio.Protocol):
    """Where the lines come in."""

    def __init__(self) -> None:
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        """Make frames of whole lines, one joined payload for all."""
        whole, _, self.rest = (self.rest + data).rpartition(b"\n")
        if whole:
            frames = b"data: " + whole.replace(b"\n", b"\n\ndata: ") + b"\n\n"
            for transport in Watcher.everyone:
                transport.write(frames)


async def main(port: int, feed_port: int) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    feed = await loop.create_server(Feed, "127.0.0.1", feed_port)
    watchers = await loop.create_server(Watcher, "127.0.0.1", port, backlog=1024)
    await asyncio.gather(feed.serve_forever(), watchers.serve_forever())


uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
