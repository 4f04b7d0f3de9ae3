"""Where a pump reads: a pipe that never blocks, and that reports when it is readable.

Two ways lead to a program's output. A pipe's file descriptor, read by the pump itself, is the
cheap one, and needs a selector's event loop; what asyncio's subprocess transports deliver works
on every platform, Windows too.

Moves a tool's output from its two pipes to the sink, in the order in which it arrives.

One loop, no queue between: while the sink is waited for, the pipes are left unread, so a slow
log stops the program at its pipe instead of filling the worker's memory.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tailrun.process.lines import Level, Line, LineSink, Stream
from tailrun.process.output import LineSplitter

_READ_BYTES = 64 * 1024
"""A read full of empty lines still holds the event loop for a moment only."""
_HELD_BYTES = 64 * 1024
"""A transport that delivered so much is paused until it is read: the program waits at its pipe."""
_REST_BYTES = 2 << 20
"""More than is under way at any time: a pipe holds 1 MiB at most, and a transport little beside it."""
_SILENT_ROUNDS = 3
"""A transport has what is in its pipe delivered by then: each round is a turn of the event loop or more."""


class Pipe(Protocol):
    """One pipe of a program."""

    def read(self) -> bytes:
        """Return what is there, empty at the pipe's end; BlockingIOError while there is nothing."""
        ...

    def watch(self, ready: Callable[[], None]) -> None:
        """Call `ready` whenever there may be something to read."""
        ...

    def unwatch(self) -> None: ...


class FdPipe:
    """A pipe by its file descriptor, which does not block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> bytes:
        """Read once, at most 64 KiB."""
        return os.read(self._fd, _READ_BYTES)

    def watch(self, ready: Callable[[], None]) -> None:
        """Watch on the running loop."""
        asyncio.get_running_loop().add_reader(self._fd, ready)

    def unwatch(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)


class DeliveredPipe:
    """A pipe whose bytes a transport of asyncio delivers."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._ended = False
        self._transport: asyncio.ReadTransport | None = None
        self._paused = False
        self._ready: Callable[[], None] | None = None

    def open(self, transport: asyncio.ReadTransport) -> None:
        """Take note of who delivers."""
        self._transport = transport

    def deliver(self, data: bytes) -> None:
        """Take bytes; over the bound the transport rests until they are read."""
        self._held += data
        if len(self._held) >= _HELD_BYTES and self._transport is not None and not self._paused:
            self._transport.pause_reading()
            self._paused = True
        self._tell()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._tell()

    def read(self) -> bytes:
        """Return all that was delivered since."""
        if not self._held and not self._ended:
            raise BlockingIOError
        data = bytes(self._held)
        self._held.clear()
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def watch(self, ready: Callable[[], None]) -> None:
        """Call `ready` at each delivery, and now if there is something already."""
        self._ready = ready
        if self._held or self._ended:
            ready()

    def unwatch(self) -> None:
        self._ready = None

    def _tell(self) -> None:
        if self._ready is not None:
            self._ready()


NO_TEXT = Line(
    Stream.SYSTEM,
    "the program prints bytes that are no text (UTF-8); each shows as \ufffd, and is not kept as it was: "
    "write binary data to a file",
    Level.WARNING,
)
"""Reported once by a pump, right after the first such line."""


@dataclass(slots=True)
class _Rest:
    """How much of what was in one pipe at a certain moment may still be there."""

    most_bytes: int = _REST_BYTES
    silent_rounds: int = 0

    @property
    def is_read(self) -> bool:
        return self.most_bytes <= 0 or self.silent_rounds >= _SILENT_ROUNDS

    def count(self, size: int) -> None:
        """Take note of a read of `size` bytes, 0 while there was nothing."""
        self.most_bytes -= size
        self.silent_rounds = 0 if size else self.silent_rounds + 1


class Pump:
    """Reads both pipes until the monitor of the program decides that it is over."""

    def __init__(self, outputs: Mapping[Stream, Pipe], sink: LineSink) -> None:
        self._open = {pipe: LineSplitter(stream) for stream, pipe in outputs.items()}
        self._splitters = tuple(self._open.values())
        self._sink = sink
        self._said_no_text = False
        self._wake = asyncio.Event()
        self._blocked_s = 0.0
        self._blocked_since: float | None = None
        self._rest: dict[Pipe, _Rest] | None = None

    @property
    def ended(self) -> bool:
        """Whether both pipes are at their end."""
        return not self._open

    def clock(self) -> float:
        """Return a monotonic time in seconds that stops while the sink is waited for.

        The program could not continue in that time.
        """
        now = self._blocked_since if self._blocked_since is not None else time.monotonic()
        return now - self._blocked_s

    def read_rest(self) -> bool:
        """Read no more than what is in the pipes at the first call; return whether that has been read.

        However late the rounds come: what a program has printed is not lost because this process had no
        CPU for a while. A process that writes on without a pause is read for as many bytes as a pipe holds.
        """
        if self._rest is None:
            self._rest = {pipe: _Rest() for pipe in self._open}
        return all(self._rest[pipe].is_read for pipe in self._open)

    def wake(self) -> None:
        """Make the loop look around: something beside the pipes has changed."""
        self._wake.set()

    async def run(self, pause: Callable[[], float | None]) -> None:
        """Pump until it is over.

        `pause` is asked after each round; it returns after how many seconds it wants to be asked again
        (None: on the next `wake`), or a negative number to end.
        """
        while True:
            lines, busy = self._read(time.monotonic())
            if lines:
                await self._give(lines)
            wait_s = pause()
            if wait_s is not None and wait_s < 0:
                break
            if busy:
                await asyncio.sleep(0)  # the other tools of this worker have their turn
            else:
                await self._idle(wait_s)
        if rest := [line for splitter in self._open.values() for line in splitter.finish()]:
            await self._give(rest)

    def _read(self, now: float) -> tuple[list[Line], bool]:
        """Read what is there; return its lines, and whether there was anything."""
        lines, busy = list[Line](), False
        for pipe, splitter in tuple(self._open.items()):
            try:
                data = pipe.read()
            except BlockingIOError:
                self._count(pipe, 0)
                lines += splitter.tick(now)
                continue
            busy = True
            self._count(pipe, len(data))
            if data:
                lines += splitter.feed(data, now)
            else:
                lines += splitter.finish()
                del self._open[pipe]
        return lines, busy

    def _count(self, pipe: Pipe, size: int) -> None:
        if self._rest is not None:
            self._rest[pipe].count(size)

    async def _give(self, lines: list[Line]) -> None:
        if not self._said_no_text and any(splitter.replaced for splitter in self._splitters):
            self._said_no_text = True
            lines.append(NO_TEXT)
        self._blocked_since = time.monotonic()
        await self._sink(lines)
        self._blocked_s += time.monotonic() - self._blocked_since
        self._blocked_since = None

    async def _idle(self, wait_s: float | None) -> None:
        """Wait for bytes, `wake`, a progress update that is due, or `wait_s`."""
        loop = asyncio.get_running_loop()
        waits = [
            splitter.due - time.monotonic() for splitter in self._open.values() if splitter.due is not None
        ]
        if wait_s is not None:
            waits.append(wait_s)
        timer = loop.call_later(max(0.0, min(waits)), self._wake.set) if waits else None
        for pipe in self._open:
            pipe.watch(self._wake.set)
        try:
            await self._wake.wait()
            self._wake.clear()
        finally:
            for pipe in self._open:
                pipe.unwatch()
            if timer is not None:
                timer.cancel()
