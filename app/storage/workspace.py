"""A workspace: the files of one run, below `users/{user_id}/runs/{run_id}/`.

`LocalWorkspaces` keeps them in a directory, `S3Workspaces` in any S3-compatible store;
one conformance suite holds both to this protocol.

The limits of one workspace, applied to a listing of it: what still fits, and where.

Both stores ask the same questions before they keep a file, so the answers (and their
messages) are here: is the file too big, is the run's room used up, are there too many
files, is a folder in the way.

The end of a checkout: what a tool did is written back, however the tool ended.

A tool that failed, timed out or was cancelled has often made the very files that explain
it, so the end of a checkout runs to its end also for a cancelled task.

The size in which file content moves: large enough that threads pay, small enough for many readers.
"""

from __future__ import annotations

import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from app.core.errors import Conflict, LostOwnership, StorageError, TailrunError, TooLarge
from app.core.names import parents
from tailrun.process.aio import run_to_completion


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file: path relative to the workspace with `/`, size in bytes, time in microseconds.

    `version` differs between two contents of one path where size and time may not: a store's times may
    be whole seconds. `executable` is None in a list of a store that keeps it with the file alone (S3):
    `stat` knows it.
    """

    path: str
    size: int
    modified_at: int
    version: str = ""
    executable: bool | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Copied:
    """The result of copying another run's files: how many, and those that a tool made unreadable."""

    files: int
    skipped: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class WorkspaceLimits:
    """Bounds of one workspace: bytes of one file, bytes and number of all files."""

    file_bytes: int
    total_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class BareTree:
    """What is no file of a run: folders that hold neither a file nor a folder, and where links lead."""

    folders: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict[str, str])

    def under(self, mine: BareTree) -> BareTree:
        """Return both together; where they differ, `mine` is right."""
        folders = tuple(sorted({*self.folders, *mine.folders}))
        return BareTree(folders, {**self.links, **mine.links})

    def within(self, limits: WorkspaceLimits) -> tuple[BareTree, TooLarge | None]:
        """Return as much as a run keeps of it, and the error of what is over the limit."""
        links = sorted(self.links.items())
        over = len(self.folders) + len(links) - limits.files
        error = None
        if over > 0:
            error = TooLarge(
                f"A run keeps at most {limits.files} links and folders without files (WORKSPACE_MAX_FILES); "
                f"{over} were left out."
            )
        kept = links[: limits.files]
        return BareTree(tuple(self.folders[: limits.files - len(kept)]), dict(kept)), error


@dataclass(frozen=True, slots=True)
class Checkout:
    """The run's files as a real directory, while a tool runs in it.

    Both lists are filled when the checkout ends. `changed`: what the tool wrote, changed or
    (size -1) removed. `skipped`: what it left there that is no file of a workspace and so is
    neither served nor kept in a store: special files, names that no URL can carry, files and folders
    (with a `/` at the end) that can't be opened. Folders without files, and links, are kept for the
    next step and for copies, as they are; they are not served.
    """

    path: Path
    changed: list[FileInfo]
    skipped: list[str] = field(default_factory=list[str])


Patience = Callable[[StorageError], Awaitable[bool]]
"""Waits a moment for a store that is away; says whether to try again."""


async def impatient(_error: StorageError, /) -> bool:
    """Wait for no store."""
    return False


UNLIMITED = WorkspaceLimits(2**62, 2**62, 2**31)
"""For what Tailrun keeps beside a run's files: it counts towards no user's limits."""


class Workspace(Protocol):
    """The files of one run. Paths are relative and normalised by `normalise`.

    Every method raises `app.core.errors.Unprocessable` (code `invalid_path`) for a path that is
    empty, absolute, leaves the workspace, passes through a link or holds NUL;
    `NotFound` where there is no such file; `TooLarge` over a limit; `Conflict` where a file
    would replace a folder or be inside of a file; `app.core.errors.StorageError` while
    the store can't be reached or its disk is full.
    """

    async def write(
        self, path: str, content: AsyncIterator[bytes] | bytes, *, executable: bool | None = None
    ) -> FileInfo:
        """Store a file, whole or not at all; folders on the way are made.

        `executable` None: as the file was that is replaced; a new one is not.
        """
        ...

    async def stat(self, path: str) -> FileInfo: ...

    def read(self, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield bytes `start` to `end` (exclusive) in pieces of at most 256 KiB."""
        ...

    async def list(self, prefix: str = "") -> list[FileInfo]:
        """Describe all files whose path starts with `prefix`, sorted by path."""
        ...

    async def delete(self, path: str) -> None: ...

    async def copy_from(self, other: Workspace) -> Copied:
        """Start with a copy of another run's files, its folders and links.

        What is there already stays: it was uploaded for this run, or copied by an earlier attempt.
        """
        ...

    def checkout(self, patience: Patience = impatient) -> AbstractAsyncContextManager[Checkout]:
        """Bring the files down to a directory; write back what changed at the end, also on failure.

        A file over a limit is not counted as changed (nor uploaded); the rest is, and then the
        end raises `TooLarge` naming it, unless the body raised: then its error has a note.
        When the body raises `app.core.errors.LostOwnership`, nothing is written back. When the store
        does not answer at the end of a body that did not raise, `patience` says whether to try again.
        """
        ...

    def read_only(self) -> AbstractAsyncContextManager[Path]:
        """Give out a directory with the files, only to be read: nothing is written back or deleted.

        A run that has no files may have no directory either.
        """
        ...

    async def take_in(
        self, checkout: Checkout, removed: Collection[str], tree: BareTree | None = None
    ) -> None:
        """Take the files below `checkout.path` from a tool that worked elsewhere; delete `removed`.

        `tree`: all folders without files and links that there are now; None: those of before stay.

        The end of a checkout without its beginning: fills `checkout`, keeps what is within the
        limits, and raises the first `TooLarge`, `Conflict` or `Unprocessable` after all else is
        done. The caller owns the folder; its files may be moved away. Repeatable.
        """
        ...


class Workspaces(Protocol):
    """Gives out workspaces; one per process, closed at the end."""

    def open(self, user_id: str, run_id: str) -> Workspace:
        """Return the workspace of one run; nothing is created before the first write."""
        ...

    def private(self, user_id: str, run_id: str) -> Workspace:
        """Return what Tailrun itself keeps of one run, without limits; hidden from `open`."""
        ...

    async def delete_run(self, user_id: str, run_id: str) -> None:
        """Remove all files of one run, the private ones too."""
        ...

    async def ping(self) -> None:
        """Raise `StorageError` unless the store answers."""
        ...

    async def close(self) -> None: ...


class Budget:
    """The sizes of a workspace's files, and the room that is left. In bytes."""

    def __init__(self, limits: WorkspaceLimits, files: Iterable[FileInfo]) -> None:
        self._limits = limits
        self._sizes = {file.path: file.size for file in files}
        self._total = sum(self._sizes.values())
        self._folders = {folder for path in self._sizes for folder in parents(path)}

    def __contains__(self, path: str) -> bool:
        return path in self._sizes

    def room(self, path: str) -> int:
        """Return how large the file at `path` may be.

        Raises:
            TooLarge: it would be one file too many, or the run's room is used up.
            Conflict: `path` is a folder, or one of its folders is a file.
        """
        self._check_place(path)
        if path not in self._sizes and len(self._sizes) >= self._limits.files:
            raise TooLarge(
                f"{path}: a run keeps at most {self._limits.files} files (WORKSPACE_MAX_FILES); "
                "delete some, or pack them into one."
            )
        left = self._limits.total_bytes - self._total + self._sizes.get(path, 0)
        return max(0, min(self._limits.file_bytes, left))

    def take(self, path: str, size: int) -> None:
        """Count a file of `size` bytes as kept at `path`; raises as `room`, and if it is too big."""
        room = self.room(path)
        if size > room:
            raise self.too_large(path, room)
        self._total += size - self._sizes.get(path, 0)
        self._sizes[path] = size
        self._folders.update(parents(path))

    def release(self, paths: Iterable[str]) -> None:
        """Count the files at `paths` as removed."""
        self._total -= sum(self._sizes.pop(path, 0) for path in paths)
        self._folders = {folder for kept in self._sizes for folder in parents(kept)}

    def too_large(self, path: str, room: int) -> TooLarge:
        """Return the error of a file that does not fit into its `room`."""
        if room == self._limits.file_bytes:
            limit = f"{room} bytes for one file (FILE_MAX_BYTES)"
        else:
            limit = f"{self._limits.total_bytes} bytes for all files of a run (WORKSPACE_MAX_BYTES)"
        return TooLarge(f"{path}: over the limit of {limit}.")

    def _check_place(self, path: str) -> None:
        if path in self._folders:
            raise folder_in_the_way(path)
        for folder in parents(path):
            if folder in self._sizes:
                raise file_in_the_way(path, folder)


def folder_in_the_way(path: str) -> Conflict:
    """Return the error of a file in the place of a folder."""
    return Conflict(f"{path} is a folder; choose another name, or delete what is in it.")


def file_in_the_way(path: str, folder: str) -> Conflict:
    """Return the error of a path that leads through a file."""
    return Conflict(f"{folder} is a file, so {path} can't be inside it.")


@contextlib.asynccontextmanager
async def checked_out(
    checkout: Checkout,
    write_back: Callable[[], Coroutine[Any, Any, None]],
    patience: Patience = impatient,
) -> AsyncGenerator[None]:
    """Run the body, then `write_back`; the body's own error goes first, with a note.

    Only `LostOwnership` writes nothing back: the files belong to another attempt by now. `write_back` is
    repeatable, and is repeated for as long as `patience` has some with a store that is away.
    """
    try:
        yield
    except LostOwnership:
        raise
    except BaseException as failure:
        try:
            await run_to_completion(write_back())
        except TailrunError as error:
            failure.add_note(f"Not all files in {checkout.path} were kept: {error}")
        raise
    else:
        while True:
            try:
                await run_to_completion(write_back())
            except StorageError as error:
                if not await patience(error):
                    raise
            else:
                return


PIECE = 256 * 1024
"""Bytes read, written or sent at a time."""


async def merged(content: AsyncIterator[bytes] | bytes) -> AsyncIterator[bytes]:
    """Yield the same bytes in pieces of about `PIECE`; a network gives far smaller ones."""
    if isinstance(content, bytes):
        yield content
        return
    waiting, size = list[bytes](), 0
    async for piece in content:
        waiting.append(piece)
        size += len(piece)
        if size >= PIECE:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
