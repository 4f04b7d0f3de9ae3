"""What a stranger may send before anybody knows who it is: size and time of heads, bodies, connections."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.api_server import TOKEN, serving, settings_for
from support.servers import RedisServer, free_port
from support.stack import wait_for

from app.core.bounded_http import MAX_HEADER_BYTES, MAX_HEADERS, MAX_LINE_BYTES, MAX_TARGET_BYTES, BoundedHttp
from app.worker.health import HealthServer

MB = 1_000_000
Open = Callable[[], int]
"""How many connections the server has."""


@contextmanager
def health_server() -> Generator[tuple[int, Open]]:
    """Serve what a worker serves, in a thread."""
    port, started, loop = free_port(), threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    async def ready() -> tuple[bool, str]:
        return True, "ready"

    server = HealthServer("127.0.0.1", port, ready)

    async def serve() -> None:
        await server.start()
        started.set()
        await over.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(30)
    state: Any = server._server.server_state
    yield port, lambda: len(state.connections)
    loop.call_soon_threadsafe(over.set)
    thread.join(30)
    loop.close()


@pytest.fixture(params=["api", "worker"])
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    redis_server: RedisServer,
    sqlite_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[int, Open]]:
    """A server whose clocks are short: the API's and the worker's own."""
    monkeypatch.setattr(BoundedHttp, "head_timeout_s", 0.5)
    monkeypatch.setattr(BoundedHttp, "body_timeout_s", 0.5)
    if request.param == "worker":
        with health_server() as served:
            yield served
        return
    with serving(settings_for(tmp_path, redis_server.url, sqlite_url)) as api:
        yield (
            int(api.url.rsplit(":", 1)[1]),
            lambda: len(api.server.server_state.connections),
        )


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.settimeout(30)
    return sock


def answer_of(sock: socket.socket) -> bytes:
    """Read until the server closes."""
    found = b""
    try:
        while piece := sock.recv(65536):
            found += piece
    except ConnectionError:
        pass
    return found


def ask(port: int, request: bytes) -> bytes:
    with closing(connect(port)) as sock:
        sock.sendall(request)
        return answer_of(sock).partition(b"\r\n")[0]


def flood(port: int, first: bytes, piece: bytes, most: int = 60 * MB) -> int:
    """Send until the server has had enough; return how much it let us send."""
    with closing(connect(port)) as sock:
        sent = 0
        try:
            sock.sendall(first)
            while sent < most:
                sock.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
        return sent


CHUNKED = b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        pytest.param(b"GET /", b"a" * 65536, id="a target without end"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"a" * 65536, id="a header's name"),
        pytest.param(b"GET / HTTP/1.1\r\nX: ", b"a" * 65536, id="a header's value"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 10922, id="headers without end"),
        pytest.param(b"", b"\r\n" * 32768, id="empty lines"),
        pytest.param(CHUNKED + b"1;", b"a" * 65536, id="a chunk's extension"),
        pytest.param(CHUNKED, b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n" * 2000, id="chunks, mostly frame"),
        pytest.param(CHUNKED + b"0\r\n", b"a" * 65536, id="a trailer's name"),
        pytest.param(CHUNKED + b"0\r\n", b"a: b\r\n" * 10922, id="trailers without end"),
        pytest.param(
            b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX: ",
            b"a" * 65536,
            id="a handshake",
        ),
    ],
)
def test_a_flood_is_cut_off_early(place: tuple[int, Open], first: bytes, piece: bytes) -> None:
    """What a kernel's buffers take besides is some megabytes; the connection is gone afterwards."""
    port, connections = place
    assert flood(port, first, piece) < 20 * MB
    wait_for(lambda: connections() == 0, "the descriptors")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(b"GET /" + b"a" * (MAX_TARGET_BYTES + 1) + b" HTTP/1.1\r\n\r\n", 414, id="target"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n", 431, id="count"),
        pytest.param(
            b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_LINE_BYTES + b"\r\n\r\n", 431, id="one that is long"
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\n" + (b"X: " + b"a" * 7000 + b"\r\n") * 10 + b"\r\n", 431, id="all together"
        ),
        pytest.param(b"GET / HTTP/1.1\r\nX: half", 408, id="half a head"),
        pytest.param(b"GET /he", 408, id="half a line"),
        pytest.param(b"NONSENSE\r\n\r\n", 400, id="none of HTTP"),
    ],
)
def test_a_head_over_a_bound_is_answered(place: tuple[int, Open], request_: bytes, status: int) -> None:
    """The status says which bound it was, and the connection is closed."""
    port, connections = place
    assert ask(port, request_).startswith(b"HTTP/1.1 %d " % status)
    wait_for(lambda: connections() == 0, "the descriptors")


def test_what_is_within_the_bounds_is_served(place: tuple[int, Open]) -> None:
    """The largest head that is taken, by its target and by its headers."""
    port, _ = place
    lines = (b"X: " + b"a" * (MAX_LINE_BYTES - 100) + b"\r\n") * (MAX_HEADER_BYTES // MAX_LINE_BYTES - 1)
    for target in (b"/healthz", b"/healthz?" + b"a" * (MAX_TARGET_BYTES - 9)):
        head = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + lines + b"\r\n"
        assert ask(port, head).startswith(b"HTTP/1.1 200 ")


def test_a_connection_that_says_nothing_is_closed(place: tuple[int, Open]) -> None:
    """Without an answer, for nothing was asked; empty lines ask nothing."""
    port, connections = place
    with closing(connect(port)) as silent, closing(connect(port)) as blank:
        blank.sendall(b"\r\n\r\n")
        assert answer_of(silent) == b""
        answer_of(blank)
        wait_for(lambda: connections() == 0, "the descriptors")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
        CHUNKED,
        b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nAuthorization: Bearer "
        + TOKEN.encode()
        + b"\r\n\r\n",
    ],
)
def test_a_body_that_does_not_come_ends_the_connection(place: tuple[int, Open], head: bytes) -> None:
    """Whether the answer is waiting for it (408), or was given before it."""
    port, connections = place
    with closing(connect(port)) as sock:
        sock.sendall(head)
        assert answer_of(sock).startswith(b"HTTP/1.1 ")
        wait_for(lambda: connections() == 0, "the descriptors")


def test_a_body_that_trickles_on_after_its_answer_ends_the_connection(place: tuple[int, Open]) -> None:
    """What comes after the answer does not keep the connection, however often it comes."""
    port, connections = place
    with closing(connect(port)) as sock:
        sock.sendall(b"POST /v1/none HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 ")

        def gone() -> bool:
            try:
                sock.sendall(b"x")
            except OSError:
                return True
            return connections() == 0

        wait_for(gone, "the connection's end")


@pytest.mark.parametrize("place", ["api"], indirect=True)
def test_a_slow_body_that_goes_on_is_read(place: tuple[int, Open]) -> None:
    """Over several times the limit on standing still; the answer is the one to the whole body."""
    port, _ = place
    body = b" " * 4000
    head = b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4000\r\n"
    with closing(connect(port)) as sock:
        sock.sendall(head + b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n")
        pause = threading.Event()
        for at in range(0, len(body), 400):
            pause.wait(0.15)  # the pace is the matter, 2.7 kB/s
            sock.sendall(body[at : at + 400])
        assert answer_of(sock).split()[1] in {b"400", b"404"}


def test_a_connection_serves_many_requests(place: tuple[int, Open]) -> None:
    """Bounds hold for each request anew, also where two come in one piece."""
    port, _ = place
    one = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 6000 + b"\r\n\r\n"
    last = one.replace(b"Host: x", b"Host: x\r\nConnection: close")
    with closing(connect(port)) as sock:
        sock.sendall(one * 40 + last)
        assert answer_of(sock).count(b"HTTP/1.1 200 ") == 41


HANDSHAKE = (
    b"HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize("place", ["api"], indirect=True)
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"GET /" + b"a" * 9000 + b" " + HANDSHAKE + b"\r\n", id="a long target"),
        pytest.param(b"GET /a " + HANDSHAKE + b"Content-Length: 5\r\n\r\n", id="with a body"),
        pytest.param(b"GET /a " + HANDSHAKE + b"Transfer-Encoding: chunked\r\n\r\n", id="with chunks"),
    ],
)
def test_a_handshake_that_cannot_be_read_is_answered(place: tuple[int, Open], request_: bytes) -> None:
    """What HTTP takes and `websockets` does not is a 400, and holds no descriptor."""
    port, connections = place
    assert ask(port, request_).startswith(b"HTTP/1.1 400 ")
    wait_for(lambda: connections() == 0, "the descriptors")
