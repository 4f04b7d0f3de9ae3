"""The log of one container as the kubelet keeps it: lines with times, and a follow that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

_BATCH = 500


def stamp(ns: int) -> bytes:
    second = datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{second}.{ns % 10**9:09d}Z".encode()


class PodLog:
    """Lines of (ns, text); `ended` when the container has."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.lines: list[tuple[int, bytes]] = []
        self.dropped = 0
        self.rest = b""
        self.ended = False
        self._more = asyncio.Event()

    def write(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        ns = self._clock()
        self.lines += [(ns, line + b"\n") for line in lines]
        self._wake()

    def end(self) -> None:
        if self.rest:
            self.lines.append((self._clock(), self.rest))
        self.ended = True
        self._wake()

    def rotate(self, keep: int = 0) -> None:
        """Forget all lines but the last `keep`."""
        gone = max(0, len(self.lines) - keep)
        self.lines = self.lines[gone:]
        self.dropped += gone

    def _wake(self) -> None:
        more, self._more = self._more, asyncio.Event()
        more.set()

    async def read(self, *, follow: bool, since_ns: int) -> AsyncIterator[bytes]:
        at = 0
        while True:
            more = self._more
            lines = self.lines[max(0, at - self.dropped) :][:_BATCH]
            at = max(at, self.dropped) + len(lines)
            out = b"".join([stamp(ns) + b" " + text for ns, text in lines if ns >= since_ns])
            if out:
                yield out
            if lines:
                continue
            if self.ended or not follow:
                return
            await more.wait()
