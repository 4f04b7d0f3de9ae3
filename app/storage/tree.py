"""Files of a directory that a tool may change at any moment, opened without being tricked.

A tool can replace a folder by a link between any two system calls. So nothing here checks a
path and then opens it: every part is opened relative to its parent's descriptor, refusing
links (O_NOFOLLOW), and what was opened is then asked what it is. Blocking; raises OSError,
and `Unprocessable` for a path that passes through a link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from app.core.errors import Conflict, NotFound, StorageError
from app.core.names import InvalidPath, is_normal, is_text, parents
from app.core.private_files import private_folder
from app.storage.workspace import FileInfo, file_in_the_way

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO would wait for a writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What opening a folder meets that a tool has just removed or put something else in place of.
_SWAPPED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMLINK})


class TreeEntry(NamedTuple):
    """A regular file; two that are equal were not changed in between. Time in nanoseconds."""

    size: int
    mtime_ns: int
    inode: int
    mode: int

    @classmethod
    def of(cls, status: os.stat_result) -> TreeEntry:
        """Take what matters out of a stat result."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, stat.S_IMODE(status.st_mode) & 0o777)

    @property
    def executable(self) -> bool:
        """Whether its owner may run it."""
        return bool(self.mode & 0o100)

    def info(self, path: str) -> FileInfo:
        """Return the protocol's description."""
        version = f"{self.inode:x}.{self.mtime_ns % 1000:x}"
        return FileInfo(path, self.size, self.mtime_ns // 1000, version, self.executable)


@dataclass(slots=True)
class Snapshot:
    """All regular files of a tree, its folders and links, and what else is there (see `Checkout.skipped`).

    `links`: where each leads, as its maker wrote it.
    """

    files: dict[str, TreeEntry] = field(default_factory=dict[str, TreeEntry])
    skipped: list[str] = field(default_factory=list[str])
    folders: set[str] = field(default_factory=set[str])
    links: dict[str, str] = field(default_factory=dict[str, str])

    def changed(self, later: Snapshot) -> list[str]:
        """Return what is new or different in `later`, sorted."""
        return sorted(path for path, found in later.files.items() if self.files.get(path) != found)

    def removed(self, later: Snapshot) -> list[str]:
        """Return what is no longer in `later`, sorted; what could not be looked into is still there."""
        closed = tuple(path for path in later.skipped if path.endswith("/"))
        return sorted(path for path in self.files if path not in later.files and not path.startswith(closed))

    def bare_folders(self) -> list[str]:
        """Return the folders that no file and no other folder brings with it, sorted."""
        brought = {folder for path in (*self.files, *self.folders) for folder in parents(path)}
        return sorted(self.folders - brought)


@contextlib.contextmanager
def opened_folder(base: Path, parts: Sequence[str], *, create: bool = False) -> Generator[int]:
    """Open the folder at `parts` below `base`, no link followed below `base`; make it if asked to."""
    if create:
        private_folder(base)
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=fd)
            fd = _replace(fd, _open(part, _FOLDER, fd))
        yield fd
    finally:
        os.close(fd)


def open_file(folder: int, name: str) -> int:
    """Open a regular file for reading; FileNotFoundError for folders and special files."""
    fd = _open(name, _FILE, folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "not a regular file", name)
    return fd


def snapshot(base: Path, parts: Sequence[str] = ()) -> Snapshot:
    """Describe all regular files below a folder; empty if there is no such folder."""
    result = Snapshot()
    pending = [""]
    with contextlib.suppress(FileNotFoundError), opened_folder(base, parts) as top:
        while pending:
            _scan(top, pending.pop(), result, pending)
    return result


def _scan(top: int, folder: str, result: Snapshot, pending: list[str]) -> None:
    """Add one folder's files to `result` and its folders to `pending`.

    Each is opened from the top again: a tool may nest folders deeper than we may hold descriptors.
    """
    try:
        with _descended(top, folder) as fd, os.scandir(fd) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISLNK(status.st_mode):
                        _sort_in_link(path, os.readlink(entry.name, dir_fd=fd), result)
                    else:
                        _sort_in(path, status, result, pending)
    except PermissionError:
        result.skipped.append(f"{folder}/")
    except OSError as error:
        if error.errno not in _SWAPPED:
            raise


def _sort_in(path: str, status: os.stat_result, result: Snapshot, pending: list[str]) -> None:
    if not is_normal(path):
        result.skipped.append(path.encode(errors="backslashreplace").decode())
    elif stat.S_ISDIR(status.st_mode):
        pending.append(path)
        result.folders.add(path)
    elif stat.S_ISREG(status.st_mode):
        result.files[path] = TreeEntry.of(status)
    else:
        result.skipped.append(path)


def _sort_in_link(path: str, target: str, result: Snapshot) -> None:
    if is_normal(path) and is_text(target):
        result.links[path] = target
    else:
        result.skipped.append(path.encode(errors="backslashreplace").decode())


def recreate(base: Path, parts: Sequence[str], folders: Iterable[str], links: Mapping[str, str]) -> None:
    """Make folders and links below the folder at `parts`; where something else is by now, that stays."""
    in_the_way = (FileExistsError, NotADirectoryError, InvalidPath)
    for path in folders:
        with contextlib.suppress(*in_the_way), opened_folder(base, [*parts, *path.split("/")], create=True):
            continue
    for path, target in links.items():
        *above, name = path.split("/")
        with contextlib.suppress(*in_the_way), opened_folder(base, [*parts, *above], create=True) as folder:
            os.symlink(target, name, dir_fd=folder)


def remove_links(base: Path, parts: Sequence[str], but: Mapping[str, str]) -> None:
    """Remove the links below the folder at `parts` that are not in `but`, or lead elsewhere there."""
    for path, target in snapshot(base, parts).links.items():
        *above, name = path.split("/")
        if but.get(path) != target:
            with opened_folder(base, [*parts, *above]) as folder:
                os.unlink(name, dir_fd=folder)


def remove_folders(base: Path, parts: Sequence[str], folders: Collection[str], links: Iterable[str]) -> None:
    """Remove the folders below `parts` without files, but for `folders` and those that `links` are in."""
    there = snapshot(base, parts)
    kept = {*folders, *(folder for path in (*folders, *links) for folder in parents(path))}
    kept.update(folder for path in there.files for folder in parents(path))
    for path in sorted(there.folders - kept, reverse=True):
        *above, name = path.split("/")
        with opened_folder(base, [*parts, *above]) as folder:
            remove_empty(folder, name)


@contextlib.contextmanager
def _descended(top: int, folder: str) -> Generator[int]:
    fd = os.dup(top)
    try:
        for part in folder.split("/") if folder else ():
            fd = _replace(fd, os.open(part, _FOLDER, dir_fd=fd))
        yield fd
    finally:
        os.close(fd)


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


def _open(name: str, flags: int, folder: int) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EMLINK} and is_link(folder, name):
            raise InvalidPath(name, "it passes through a link") from None
        if error.errno in {errno.ENXIO, errno.EOPNOTSUPP}:  # a socket
            raise FileNotFoundError(errno.ENOENT, "not a regular file", name) from None
        raise


def is_link(folder: int, name: str) -> bool:
    """Whether `name` is a link just now: good for a message, never for a decision to open."""
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def remove_empty(folder: int, name: str, depth: int = 64) -> bool:
    """Remove the folder `name` if there is nothing but empty folders in it; return whether it is gone."""
    try:
        with _descended(folder, name) as fd:
            with os.scandir(fd) as entries:
                inner = [entry.name for entry in entries]
            if depth == 0 or not all(remove_empty(fd, entry, depth - 1) for entry in inner):
                return False
        os.rmdir(name, dir_fd=folder)
    except OSError as error:
        if error.errno in _SWAPPED or error.errno == errno.ENOTEMPTY:
            return False
        raise
    return True


@contextlib.contextmanager
def explained(path: str, *, writing: bool = False) -> Generator[None]:
    """Turn an OSError about `path` into an error that a user can act on."""
    try:
        yield
    except OSError as error:
        raise _explanation(path, error, writing=writing) from error


def _explanation(path: str, error: OSError, *, writing: bool) -> Exception:
    match error.errno:
        case errno.ENOTDIR if writing:
            return file_in_the_way(path, "One of its folders")
        case errno.ENOENT | errno.ENOTDIR:
            return NotFound(f"There is no file {path!r}.")
        case errno.ELOOP | errno.EMLINK:
            return InvalidPath(path, "it passes through a link")
        case errno.EACCES | errno.EPERM:
            return Conflict(f"{path}: a tool took away the permission to open it.")
        case errno.ENOSPC | errno.EDQUOT:
            return StorageError(f"{path}: the disk of the workspaces is full.")
        case _:
            return StorageError(f"{path}: {error.strerror}.")
