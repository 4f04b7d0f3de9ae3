"""Where a pump reads: a pipe that never blocks, and that says when there is something.

Two ways lead to a program's output. A pipe's file descriptor, read by the pump itself, is the
cheap one, and needs a selector's event loop; what asyncio's subprocess transports deliver works
on every platform, Windows too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Protocol

_READ_BYTES = 64 * 1024
"""A read full of empty lines still holds the event loop for a moment only."""
_HELD_BYTES = 64 * 1024
"""A transport that delivered so much is paused until somebody reads: the program waits at its pipe."""


class Pipe(Protocol):
    """One pipe of a program."""

    def read(self) -> bytes:
        """Return what is there, empty at the pipe's end; BlockingIOError while there is nothing."""
        ...

    def watch(self, ready: Callable[[], None]) -> None:
        """Call `ready` whenever there may be something to read."""
        ...

    def unwatch(self) -> None:
        """Call nobody any more."""
        ...


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
        """Stop watching."""
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
        """Stop calling."""
        self._ready = None

    def _tell(self) -> None:
        if self._ready is not None:
            self._ready()
