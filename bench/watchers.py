"""Many readers of streams in one process, cheap enough not to be what is measured.

No event loop and no parsing: one epoll, one buffer for all, and a search for the one byte by which a line
is counted. `busy` says which share of a core that took.
"""

from __future__ import annotations

import re
import select
import socket
import time
from types import TracebackType
from typing import Self

MARK = b"~"
SENT = re.compile(rb"@(\d+) ")
_BUFFER = bytearray(1 << 18)


class Watchers:
    """`count` connections that have sent `request` and got the first bytes of an answer."""

    def __init__(self, count: int, port: int, request: bytes, *, timed: int = 0) -> None:
        self.lines = [0] * count
        self.latencies: list[float] = []
        self.busy = 0.0
        self._timed = timed
        """How many of them take the time that each of their lines was under way."""
        self._epoll = select.epoll()
        self._sockets: dict[int, tuple[socket.socket, int]] = {}
        for index in range(count):
            sock = socket.create_connection(("127.0.0.1", port), timeout=20)
            sock.sendall(request)
            self._sockets[sock.fileno()] = (sock, index)
        for sock, _ in self._sockets.values():
            head = sock.recv(64)
            if b" 200 " not in head:
                raise SystemExit(f"a watcher was answered: {head!r}")
            sock.setblocking(False)
            self._epoll.register(sock, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._epoll.close()
        for sock, _ in self._sockets.values():
            sock.close()

    def read(self, lines: int, timeout_s: float) -> float:
        """Read until each has `lines` more lines, or the time is over; return the seconds it took."""
        began, used = time.perf_counter(), time.process_time()
        goal = [count + lines for count in self.lines]
        missing = sum(count < wanted for count, wanted in zip(self.lines, goal, strict=True))
        ended = began
        while missing and (left := began + timeout_s - time.perf_counter()) > 0:
            for fd, _ in self._epoll.poll(left):
                sock, index = self._sockets[fd]
                before = self.lines[index]
                self._take(sock, index)
                if before < goal[index] <= self.lines[index]:
                    missing -= 1
            ended = time.perf_counter()
        took = ended - began
        self.busy = (time.process_time() - used) / took if took else 0.0
        return took

    def _take(self, sock: socket.socket, index: int) -> None:
        try:
            size = sock.recv_into(_BUFFER)
        except BlockingIOError:
            return
        if not size:
            raise SystemExit("the server closed a watcher's connection")
        self.lines[index] += _BUFFER.count(MARK, 0, size)
        if index < self._timed:
            now = time.monotonic_ns()
            self.latencies += [(now - int(sent)) / 1e6 for sent in SENT.findall(_BUFFER, 0, size)]


def stalled(count: int, port: int, request: bytes) -> list[socket.socket]:
    """Open connections that ask for the stream and never read, with the smallest buffers there are."""
    sockets: list[socket.socket] = []
    for _ in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", port))
        sock.sendall(request)
        sockets.append(sock)
    return sockets
