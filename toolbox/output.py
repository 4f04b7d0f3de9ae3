"""The wrapper's own end: its stdout, which it never waits for but in its one poll."""

from __future__ import annotations

import os

STDOUT = 1
_PIPE_BUF = 4096  # a pipe that polls as writable takes this much without blocking


class Output:
    """Our stdout, never waited for: the caller polls it and calls `write_some` when it is writable.

    Without a reader (the runtime's end is closed) everything is thrown away, and the program
    runs to its end: its exit code still counts.
    """

    def __init__(self) -> None:
        self._left = memoryview(b"")
        self._deaf = False

    @property
    def waiting(self) -> bool:
        return bool(self._left)

    def put(self, data: bytes) -> None:
        """Take what is to be written, once nothing else is waiting."""
        if not self._deaf:
            self._left = memoryview(bytes(self._left) + data if self._left else data)

    def write_some(self) -> None:
        """Write what a pipe takes at once; stdout has been polled as writable."""
        try:
            self._left = self._left[os.write(STDOUT, self._left[:_PIPE_BUF]) :]
        except BlockingIOError:
            pass  # another process made it non-blocking, and another writer was quicker
        except OSError:
            self._left, self._deaf = memoryview(b""), True


def open_standard_streams() -> None:
    """Make sure of descriptors 0 to 2, or one of our pipes would become the program's stdin."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - stderr
        pass
    os.close(fd)
