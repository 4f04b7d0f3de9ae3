"""The response of a stream around sse-starlette, in virtual time, with a server that cannot abort."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

from support.virtual_loop import run

from app.routes.stream_response import StreamResponse
from app.stream.formats import Format

PING_S, SEND_S = 15.0, 30.0


class Payloads:
    """A reader of fixed payloads; after them it waits for a poke or its end."""

    def __init__(self, payloads: list[bytes], *, drains: bool) -> None:
        self._left = payloads
        self._drains = drains
        self._woken = asyncio.Event()
        self.finished = False
        self.closed = False
        self.cancelled = False

    async def next(self) -> bytes | None:
        if self._left:
            return self._left.pop(0)
        try:
            await self._woken.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        self._woken.clear()
        return None if self.closed else b""

    def poke(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self.closed = True
        self._woken.set()

    def drain(self) -> None:
        if self._drains:
            self.close()


class Client:
    """What a server does for a response: notes its messages, and lets the client leave."""

    def __init__(self, payloads: list[bytes], *, whole: bool = False, drains: bool = True) -> None:
        self.reader = Payloads(payloads, drains=drains)
        self.opened = 0
        self.sent: list[tuple[float, dict[str, Any]]] = []
        self.leaves, self.draining = asyncio.Event(), asyncio.Event()
        self.send: Callable[[Any], Awaitable[None]] = self.note
        self.response = StreamResponse(
            self._open,
            Format.SSE,
            whole=whole,
            ping_s=PING_S,
            send_timeout_s=SEND_S,
            draining=self.draining,
        )

    @contextmanager
    def _open(self) -> Generator[Payloads]:
        self.opened += 1
        yield self.reader

    async def note(self, message: dict[str, Any]) -> None:
        self.sent.append((asyncio.get_running_loop().time(), message))

    async def serve(self, method: str = "GET") -> None:
        async def receive() -> dict[str, Any]:
            await self.leaves.wait()
            return {"type": "http.disconnect"}

        await self.response({"type": "http", "method": method}, receive, self.send)

    @property
    def bodies(self) -> list[tuple[float, bytes]]:
        return [
            (at, message["body"]) for at, message in self.sent if message["type"] != "http.response.start"
        ]

    @property
    def complete(self) -> bool:
        return self.sent[-1][1].get("more_body") is False


def test_head_has_the_headers_and_opens_no_stream() -> None:
    """A HEAD of a stream that never ends is answered at once."""

    async def play() -> Client:
        client = Client([b"data: 1\n\n"])
        await client.serve("HEAD")
        return client

    client = run(play())
    assert client.opened == 0
    assert client.bodies == [(0.0, b"")]
    assert client.complete
    headers = dict(client.sent[0][1]["headers"])
    assert headers == {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"x-content-type-options": b"nosniff",
        b"cache-control": b"no-store",
        b"x-accel-buffering": b"no",
    }


def test_pings_come_after_a_silence_and_the_reader_ends_when_the_client_leaves() -> None:
    """The payloads go out as they are; whoever reads for a client that left is ended, not cancelled."""

    async def play() -> Client:
        client = Client([b"data: 1\n\n", b"data: 2\n\ndata: 3\n\n"])
        serving = asyncio.create_task(client.serve())
        await asyncio.sleep(2 * PING_S + 1)
        client.leaves.set()
        await serving
        return client

    client = run(play())
    told = [(0.0, b"retry: 2000\n\n"), (0.0, b"data: 1\n\n"), (0.0, b"data: 2\n\ndata: 3\n\n")]
    assert client.bodies[:-1] == [*told, (PING_S, b": ping\n\n"), (2 * PING_S, b": ping\n\n")]
    assert client.reader.closed
    assert not client.reader.cancelled


def test_a_stream_that_drains_ends_whole() -> None:
    """Who follows is ended by the hub, and gets a whole answer."""

    async def play() -> Client:
        client = Client([b"data: 1\n\n"])
        serving = asyncio.create_task(client.serve())
        await asyncio.sleep(1)
        client.draining.set()
        client.reader.drain()
        await serving
        return client

    client = run(play())
    assert client.complete
    assert client.sent[-1][0] == 1.0


def test_a_download_that_goes_on_is_ended_before_the_server_would() -> None:
    """What does not drain gets the grace of 4.5 s, and then no end that would make it look whole."""

    async def play() -> tuple[Client, float]:
        client = Client([b"data: 1\n\n"], whole=True, drains=False)
        serving = asyncio.create_task(client.serve())
        await asyncio.sleep(1)
        client.draining.set()
        client.reader.drain()
        await serving
        return client, asyncio.get_running_loop().time()

    client, ended = run(play())
    assert 5.4 < ended < 5.8
    assert not client.complete


def test_a_client_who_does_not_read_is_ended_also_where_nothing_can_be_aborted() -> None:
    """A send that takes `send_timeout_s` ends the response."""

    async def play() -> float:
        client = Client([b"data: 1\n\n"])

        async def stuck(message: dict[str, Any]) -> None:
            if message.get("body") == b"data: 1\n\n":
                await asyncio.sleep(3600)

        client.send = stuck
        await client.serve()
        assert not client.reader.closed
        return asyncio.get_running_loop().time()

    assert run(play()) == SEND_S


def test_the_library_leaves_uvicorn_alone() -> None:
    """Importing sse-starlette replaces a method of uvicorn; the response's module puts it back.

    In a process of its own, for the order of imports is what is asked.
    """
    program = """
import uvicorn
before = uvicorn.Server.handle_exit
import app.main
from sse_starlette.sse import AppStatus
assert uvicorn.Server.handle_exit is before, uvicorn.Server.handle_exit
server = uvicorn.Server(uvicorn.Config(app=None))
server.handle_exit(15, None)
assert server.should_exit and not AppStatus.should_exit
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
