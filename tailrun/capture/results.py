"""Results that are complete when the call returns, and may be awaited all the same.

Nothing here needs an event loop, so the library works from synchronous code. Code that was written
for an asynchronous library says `await capture.append_line(…)`; with these results it runs too.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from tailrun.capture.entries import LogEntry

_T = TypeVar("_T")


class Done:
    """The result of a call that returns nothing."""

    def __await__(self) -> Generator[None]:
        return _already(None)


class Enough:
    """True: there are enough resources."""

    def __bool__(self) -> bool:
        return True

    def __await__(self) -> Generator[None, None, bool]:
        return _already(bool(self))


class Entries(list[LogEntry]):
    """A list of entries."""

    def __await__(self) -> Generator[None, None, list[LogEntry]]:
        return _already(list(self))


def _already(value: _T) -> Generator[None, None, _T]:
    """Await nothing."""
    yield from ()
    return value
