"""The files of a workspace before and after a tool, and what it changed.

Called when no tool runs: before it starts, and after its container is gone. So there is no process that
could swap a folder for a link between two looks; links are still neither followed nor kept.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from toolbox.archive import Limits, is_plain

_ROUND = 50_000  # entries to look at besides those that a workspace may hold
_NAMED = 1_000


class Found(NamedTuple):
    """A regular file; two that are equal were not changed in between. Times in nanoseconds."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    executable: bool


class Tree(NamedTuple):
    """Regular files by path, and the names of everything else; `whole` unless there was too much."""

    files: dict[str, Found]
    skipped: list[str]
    whole: bool = True


class Changes(NamedTuple):
    """Files to send back (sorted), deleted ones, those a workspace can't hold, those over a limit."""

    changed: list[str]
    removed: list[str]
    skipped: list[str]
    refused: list[tuple[str, int]]
    whole: bool


def scan(top: str, limits: Limits) -> Tree:
    """Describe everything below `top`, up to some more entries than a workspace may hold."""
    files: dict[str, Found] = {}
    skipped: list[str] = []
    pending, seen = [""], 0
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(top, folder)) as entries:  # noqa: PTH118 - strings, thousands of them
                for entry in entries:
                    seen += 1
                    if seen > limits.files + _ROUND:
                        return Tree(files, skipped, whole=False)
                    _sort_in(f"{folder}{entry.name}", entry, files, skipped, pending)
        except OSError:  # no permission, or deeper than a path can be long
            skipped.append(folder)
    return Tree(files, skipped)


def _sort_in(
    path: str, entry: os.DirEntry[str], files: dict[str, Found], skipped: list[str], pending: list[str]
) -> None:
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        pending.append(f"{path}/")
    elif stat.S_ISREG(status.st_mode) and is_plain(path):
        executable = bool(status.st_mode & 0o100)
        files[path] = Found(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, executable)
    else:
        skipped.append(path)


def compare(before: dict[str, Found], after: Tree, limits: Limits) -> Changes:
    """Return what a tool did; files over `limits` are refused, in the order of their paths."""
    changed: list[str] = []
    refused: list[tuple[str, int]] = []
    left = limits.bytes
    for path in sorted(path for path, found in after.files.items() if before.get(path) != found):
        size = after.files[path].size
        if size > min(left, limits.file_bytes) or len(changed) >= limits.files:
            refused.append((path, size))
        else:
            changed.append(path)
            left -= size
    # What could not be looked into may still be there.
    closed = tuple(name for name in after.skipped if name.endswith("/") or not name)
    gone = [path for path in before if path not in after.files and not path.startswith(closed)]
    skipped = sorted(name.encode(errors="backslashreplace").decode() for name in after.skipped)
    return Changes(
        changed, sorted(gone) if after.whole else [], skipped[:_NAMED], refused[:_NAMED], after.whole
    )
