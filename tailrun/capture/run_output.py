"""The output of one run: a ring of its last lines that many threads fill and many tasks follow.

A follower is a place in the sequence, never a queue: one that does not read costs nothing and
holds up no writer. Where the ring has forgotten lines that it had not seen, it is told how many.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tailrun.capture.entries import LogEntry
from tailrun.capture.log_file import LogFile
from tailrun.process.lines import Level, Stream

_AT_ONCE = 500
"""Entries that a follower takes under the lock at a time."""


@dataclass(slots=True, eq=False)
class _Bell:
    """Wakes one follower on its own loop, once until it has looked."""

    loop: asyncio.AbstractEventLoop
    event: asyncio.Event
    rung: bool = False

    def ring(self) -> None:
        if not self.rung:
            self.rung = True
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self.loop.call_soon_threadsafe(self.event.set)


class RunOutput:
    """The lines of one run. Every method but `follow` may be called from any thread."""

    def __init__(self, file: LogFile, *, most_lines: int, most_chars: int) -> None:
        self.exit_code: int | None = None
        self._file = file
        self._most_lines, self._most_chars = most_lines, most_chars
        self._lock = threading.Lock()
        self._entries: deque[LogEntry] = deque()
        self._chars = 0
        self._last = 0
        self._ended = self._recalled = self._file_broken = False
        self._bells: set[_Bell] = set()

    @property
    def ended(self) -> bool:
        """Whether no more lines are to come."""
        return self._ended

    @property
    def followers(self) -> int:
        """How many follow just now."""
        return len(self._bells)

    def append(self, entries: Sequence[LogEntry]) -> None:
        """Number the entries, keep them, write them to the file, wake the followers."""
        with self._lock:
            self._keep(entries)

    def _keep(self, entries: Sequence[LogEntry]) -> None:
        numbered = [replace(entry, seq=self._last + n) for n, entry in enumerate(entries, 1)]
        self._last += len(numbered)
        self._entries.extend(numbered)
        self._chars += sum(len(entry.message) for entry in numbered)
        while len(self._entries) > self._most_lines or (
            self._chars > self._most_chars and len(self._entries) > 1
        ):
            self._chars -= len(self._entries.popleft().message)
        self._write(numbered)
        self._ring()

    def _write(self, entries: Sequence[LogEntry]) -> None:
        """Write to the file; a full disk ends the file, and not the program that prints."""
        if self._file_broken:
            return
        try:
            self._file.write(entries)
        except OSError as error:
            self._file_broken = True
            text = f"from here on nothing is kept in {self._file.path}: {error.strerror or error}"
            self._keep([LogEntry(datetime.now(UTC), text, Level.WARNING, Stream.SYSTEM)])

    def entries(self) -> list[LogEntry]:
        """Return the lines that the ring holds."""
        with self._lock:
            return list(self._entries)

    def recall(self, entries: Sequence[LogEntry]) -> None:
        """Hold what a file told of a run that has ended."""
        with self._lock:
            self._entries, self._recalled, self._ended = deque(entries), True, True
            self._last = entries[-1].seq if entries else 0

    def resume(self) -> None:
        """More lines are to come; the file exists from now on, also for a run that prints nothing."""
        with self._lock:
            self._ended, self.exit_code = False, None
            self._write([])

    def end(self, exit_code: int | None) -> None:
        """No more lines will come: followers end when they have read the last one."""
        with self._lock:
            self._ended, self.exit_code = True, exit_code
            self._file.close()
            self._ring()

    async def follow(self, after: int, pause_s: float) -> AsyncGenerator[LogEntry | None]:
        """Yield the lines behind `after` until the end; None whenever nothing came for `pause_s`."""
        bell = _Bell(asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._bells.add(bell)
        try:
            while True:
                found, ended = self._behind(after, bell)
                for entry in found:
                    yield entry
                    after = entry.seq
                if not found and ended:
                    return
                if not found and not await _comes(bell.event, pause_s):
                    yield None
        finally:
            with self._lock:
                self._bells.discard(bell)

    def _behind(self, after: int, bell: _Bell) -> tuple[list[LogEntry], bool]:
        with self._lock:
            bell.event.clear()
            bell.rung = False
            if not self._entries or after >= self._last:
                return [], self._ended
            start = bisect_right(self._entries, after, key=_seq_of)
            found = [self._entries[at] for at in range(start, min(len(self._entries), start + _AT_ONCE))]
            lost = found[0].seq - 1 - after
            if lost and not self._recalled:
                found.insert(0, _lost(lost, found[0].seq - 1, self._file))
            return found, self._ended

    def _ring(self) -> None:
        for bell in self._bells:
            bell.ring()


def _seq_of(entry: LogEntry) -> int:
    return entry.seq


def _lost(count: int, seq: int, file: LogFile) -> LogEntry:
    text = f"{count} lines before this one are no longer in memory (max_buffer_size); see {file.path}"
    return LogEntry(datetime.now(UTC), text, Level.WARNING, Stream.SYSTEM, seq)


async def _comes(event: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            return await event.wait()
    except TimeoutError:
        return False
