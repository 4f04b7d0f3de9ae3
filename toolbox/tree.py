"""The files of a workspace before and after a tool, and what it changed.

Called when no tool runs: before it starts, and after its container is gone. So there is no process that
could swap a folder for a link between two looks; links are still not followed. They and folders without
files are in no archive of files: both ways they travel as one list, the `SentTree`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from toolbox.archive import Limits, is_plain

_ROUND = 50_000  # entries to look at besides those that a workspace may hold
_NAMED = 1_000


_BARE_CHARS = 4_000_000  # of all names and targets together

TREE = "tree.json"
"""The file of an archive that holds the `SentTree`; it is the last one on the way down."""


class Found(NamedTuple):
    """A regular file; two that are equal were not changed in between. Times in nanoseconds."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    mode: int


class SentTree(NamedTuple):
    """Folders that hold neither a file nor a folder, and where links lead, as their makers wrote it."""

    folders: list[str]
    links: dict[str, str]

    @classmethod
    def read(cls, said: Any) -> SentTree:
        """Take it out of JSON; ValueError where it is none, or a path leads elsewhere than down."""
        if not isinstance(said, Mapping):
            raise ValueError("a tree is an object")  # noqa: TRY004 - one kind of error for whoever reads
        folders, links = said.get("folders"), said.get("links")
        if not isinstance(folders, list) or not isinstance(links, dict):
            raise ValueError("a tree has folders and links")  # noqa: TRY004 - as above
        texts = [*folders, *links, *links.values()]
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError("a tree holds names")
        if not all(map(is_plain, [*folders, *links])) or any("\0" in target for target in links.values()):
            raise ValueError("a tree holds plain relative paths")
        return cls(folders, links)


class Tree(NamedTuple):
    """What is below a folder; `skipped` names what has no place in a workspace.

    `whole` unless there was too much.
    """

    files: dict[str, Found]
    skipped: list[str]
    folders: list[str]
    links: dict[str, str]
    whole: bool = True


class Changes(NamedTuple):
    """Files to send back (sorted), deleted ones, those a workspace can't hold, those over a limit.

    `tree`: all links and bare folders there are now; None where not everything could be looked into.
    """

    changed: list[str]
    removed: list[str]
    skipped: list[str]
    refused: list[tuple[str, int]]
    whole: bool
    tree: SentTree | None


def scan(top: str, limits: Limits) -> Tree:
    """Describe everything below `top`, up to some more entries than a workspace may hold."""
    tree = Tree({}, [], [], {})
    pending, seen = [""], 0
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(top, folder)) as entries:  # noqa: PTH118 - strings, thousands of them
                for entry in entries:
                    seen += 1
                    if seen > limits.files + _ROUND:
                        return tree._replace(whole=False)
                    _sort_in(f"{folder}{entry.name}", entry, tree, pending)
        except OSError:  # no permission, or deeper than a path can be long
            tree.skipped.append(folder)
    return tree


def _sort_in(path: str, entry: os.DirEntry[str], tree: Tree, pending: list[str]) -> None:
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        pending.append(f"{path}/")
        if is_plain(path):
            tree.folders.append(path)
    elif stat.S_ISREG(status.st_mode) and is_plain(path):
        found = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        tree.files[path] = Found(*found, status.st_mode & 0o777)
    elif stat.S_ISLNK(status.st_mode) and is_plain(path) and _is_text(target := _target(entry.path)):
        tree.links[path] = target
    else:
        tree.skipped.append(path)


def _target(link: str) -> str:
    return os.readlink(link)  # noqa: PTH115 - as its maker wrote it


def _is_text(target: str) -> bool:
    """Whether it can be sent: a link may lead to bytes that are no UTF-8."""
    return not any("\ud800" <= char <= "\udfff" for char in target)


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
    if not after.whole:
        return Changes(changed, [], skipped[:_NAMED], refused[:_NAMED], False, None)
    bare = None if closed else _bare(after, limits.files)
    return Changes(changed, sorted(gone), skipped[:_NAMED], refused[:_NAMED], True, bare)


def _bare(tree: Tree, most: int) -> SentTree:
    """Return what is no file; one more than `most` where there is more, so that it is noticed."""
    brought = {path.rpartition("/")[0] for path in (*tree.files, *tree.folders)}
    left, kept = _BARE_CHARS, SentTree([], {})
    for path, target in sorted(tree.links.items()):
        left -= len(path) + len(target)
        if left < 0 or len(kept.links) > most:
            return kept
        kept.links[path] = target
    for path in sorted(set(tree.folders) - brought):
        left -= len(path)
        if left < 0 or len(kept.links) + len(kept.folders) > most:
            return kept
        kept.folders.append(path)
    return kept


def recreate(top: Path, tree: SentTree) -> None:
    """Make folders and links below `top`; where something else is by now, that stays."""
    for path in tree.folders:
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            (top / path).mkdir(parents=True, exist_ok=True)
    for path, target in tree.links.items():
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).symlink_to(target)
