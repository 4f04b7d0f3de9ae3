"""A TCP proxy before a real server: forwards, and breaks what a test tells it to.

It can cut connections (reset or in order), freeze and slow them, lose the reply to what was carried out,
and, knowing just enough of RESP, drop a share of the messages that Redis pushes to subscribers. It runs in
a thread of its own, so that tests of processes and tests of coroutines use it alike.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
_MESSAGE = (b"*3\r\n$7\r\nmessage\r\n", b">3\r\n$7\r\nmessage\r\n")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends RST


@dataclass
class Loss:
    """A reply to be lost: the connection is cut after `keep` bytes of it.

    It is the reply to a request that holds `request` (any, if neither is given), the first but `skip` of
    these; or one that itself holds `reply`. `happened` once it is lost.
    """

    request: bytes = b""
    reply: bytes = b""
    skip: int = 0
    keep: int = 0
    happened: bool = False

    def meets(self, request: bytes) -> bool:
        """Whether this request's reply is the one to lose; counts down to it."""
        if self.happened or self.reply or self.request not in request:
            return False
        self.skip -= 1
        return self.skip < 0


class TcpProxy:
    """Forwards a free port of loopback to `target`, another port of loopback."""

    def __init__(self, target: int, *, seed: int = 0) -> None:
        self.target = target
        self.dice = random.Random(seed)
        self.delay_s = 0.0
        """How much later than it came everything is forwarded."""
        self.drop_messages = 0.0
        """The share of pub/sub messages that never arrives."""
        self.dropped = 0
        self.losses: list[Loss] = []
        self._loop = asyncio.new_event_loop()
        self._links: set[_Link] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)
        self._thread.start()
        self.port: int = self._call(self._serve)

    def cut(self, share: float = 1.0, *, reset: bool = True) -> int:
        """Cut this share of the connections, with RST or FIN; return how many it were."""
        return self._call(self._each, share, lambda link: link.cut(reset=reset))

    def freeze(self, share: float = 1.0) -> int:
        """Forward nothing more on this share of the connections, either way, until `thaw`."""
        return self._call(self._each, share, lambda link: link.moving.clear())

    def thaw(self) -> None:
        """Go on, with what has come meanwhile."""
        self._call(self._each, 1.0, lambda link: link.moving.set())

    def lose(self, **what: Any) -> Loss:
        """Lose a reply: see `Loss`."""
        loss = Loss(**what)
        self.losses.append(loss)
        return loss

    def close(self) -> None:
        """Cut everything and stop."""
        self._call(self._stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, what: Callable[..., Awaitable[T]], *args: Any) -> T:
        async def call() -> T:
            return await what(*args)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(60)

    async def _serve(self) -> int:
        self._server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        tasks = [link.task for link in self._links]
        for link in list(self._links):
            link.cut(reset=True)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _each(self, share: float, deed: Callable[[_Link], None]) -> int:
        chosen = [link for link in self._links if self.dice.random() < share]
        for link in chosen:
            deed(link)
        return len(chosen)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), server)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)


_End = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: TcpProxy, client: _End, server: _End) -> None:
        self.proxy = proxy
        self.moving = asyncio.Event()
        self.moving.set()
        self.task: asyncio.Task[Any] = asyncio.current_task()  # pyright: ignore[reportAttributeAccessIssue]
        self._client, self._server = client, server
        self._doomed: Loss | None = None
        self._held = b""

    async def run(self) -> None:
        ways = (
            asyncio.create_task(self._forward(self._client[0], self._server[1], self._ask)),
            asyncio.create_task(self._forward(self._server[0], self._client[1], self._answer)),
        )
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        self.cut(reset=False)

    def cut(self, *, reset: bool) -> None:
        for _, writer in (self._client, self._server):
            if reset and not writer.is_closing():
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()
            else:
                writer.close()

    async def _forward(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, look: Callable[[bytes], bytes]
    ) -> None:
        while piece := await source.read(65_536):
            if self.proxy.delay_s:
                await asyncio.sleep(self.proxy.delay_s)
            await self.moving.wait()
            sink.write(look(piece))
            await sink.drain()

    def _ask(self, piece: bytes) -> bytes:
        for loss in self.proxy.losses:
            if loss.meets(piece):
                self._doomed = loss
        return piece

    def _answer(self, piece: bytes) -> bytes:
        held = (loss for loss in self.proxy.losses if loss.reply and not loss.happened)
        lost = self._doomed or next((loss for loss in held if loss.reply in piece), None)
        if lost is not None:
            lost.happened = True
            self._client[1].write(piece[: lost.keep])
            self.cut(reset=not lost.keep)  # a reset could overtake what is kept
            return b""
        return self._without_messages(piece) if self.proxy.drop_messages or self._held else piece

    def _without_messages(self, piece: bytes) -> bytes:
        """Let whole replies pass, but some of the messages to subscribers."""
        data, at, passed = self._held + piece, 0, list[bytes]()
        while (end := reply_end(data, at)) is not None:
            message = data.startswith(_MESSAGE, at)
            if message and self.proxy.dice.random() < self.proxy.drop_messages:
                self.proxy.dropped += 1
            else:
                passed.append(data[at:end])
            at = end
        self._held = data[at:]
        return b"".join(passed)


def reply_end(data: bytes, at: int) -> int | None:
    """Return where the RESP value that begins at `at` ends; None while it is not whole."""
    line = data.find(b"\r\n", at)
    if line < 0:
        return None
    kind, end = data[at : at + 1], line + 2
    if kind in b"$=!":
        size = int(data[at + 1 : line])
        end += 0 if size < 0 else size + 2
        return end if end <= len(data) else None
    for _ in range(_items(kind, data[at + 1 : line])):
        inner = reply_end(data, end)
        if inner is None:
            return None
        end = inner
    return end


def _items(kind: bytes, count: bytes) -> int:
    if kind in b"*>~":
        return max(0, int(count))
    return 2 * int(count) if kind == b"%" else 0


class BehindProxy:
    """A Redis server whom processes reach through a proxy, and the test itself directly."""

    def __init__(self, server: Any, *, seed: int = 0) -> None:
        self.server = server
        self.proxy = TcpProxy(server.port, seed=seed)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.proxy.port}/0"

    def stop(self) -> None:
        self.proxy.close()
        self.server.stop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.server, name)
