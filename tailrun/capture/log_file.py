"""The file of a run: one line an entry, rotated at a size, readable back when memory has forgotten.

`<run_id>.log` is the newest part, `<run_id>.log.1` the one before it, and so on. Callers hold the
run's lock: a file has one writer at a time.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TextIO

from tailrun.capture.entries import LogEntry

_RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


class LogFile:
    """Writes and reads the file of one run; blocking. Opened at the first line.

    Raises:
        ValueError: the run's id is no name for a file (letters, digits, `.`, `_`, `-`).
        OSError: from every method, of the file system.
    """

    def __init__(self, folder: Path, run_id: str, *, max_bytes: int, backups: int) -> None:
        if not _RUN_ID.fullmatch(run_id):
            raise ValueError(f"run_id {run_id[:80]!r} is no file name: use letters, digits, '.', '_' and '-'")
        self.path = folder / f"{run_id}.log"
        self._max_bytes, self._backups = max_bytes, backups
        self._file: TextIO | None = None
        self._size = 0

    def write(self, entries: Sequence[LogEntry]) -> None:
        """Append entries and hand them to the operating system; progress updates are left out."""
        if self._file is None:
            self._file = self._open()
        for entry in entries:
            if not entry.cr:
                self._file = self._append(self._file, entry.to_text())
        self._file.flush()

    def close(self) -> None:
        """Close the file; a later `write` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def exists(self) -> bool:
        """Whether the run has ever printed a line."""
        return self.path.exists()

    def read(self, most: int) -> list[LogEntry]:
        """Return the last `most` entries that the files hold; counted anew if several runs had this id."""
        last = deque(self._lines(), maxlen=most)
        entries = [entry for line in last if (entry := LogEntry.of_text(line)) is not None]
        if all(one.seq < other.seq for one, other in pairwise(entries)):
            return entries
        return [replace(entry, seq=seq) for seq, entry in enumerate(entries, 1)]

    def _append(self, file: TextIO, line: str) -> TextIO:
        size = len(line.encode(errors="replace"))
        if self._size and self._size + size > self._max_bytes:
            file = self._rotated()
        file.write(line)
        self._size += size
        return file

    def _open(self) -> TextIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a", encoding="utf-8", errors="replace", newline="")
        self._size = self.path.stat().st_size
        return file

    def _rotated(self) -> TextIO:
        self.close()
        self._part(self._backups).unlink(missing_ok=True)
        for number in range(self._backups - 1, -1, -1):
            if self._part(number).exists():
                self._part(number).replace(self._part(number + 1))
        return self._open()

    def _part(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path

    def _lines(self) -> Iterator[str]:
        for number in range(self._backups, -1, -1):
            if self._part(number).exists():
                with self._part(number).open(encoding="utf-8", errors="replace", newline="\n") as file:
                    for line in file:
                        yield line.removesuffix("\n")
