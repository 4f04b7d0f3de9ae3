"""What a workspace is: the files of one run, below `users/{user_id}/runs/{run_id}/`.

`LocalWorkspaces` keeps them in a directory, `S3Workspaces` in any S3-compatible store;
one conformance suite holds both to this protocol.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file: path relative to the workspace with `/`, size in bytes, time in microseconds."""

    path: str
    size: int
    modified_at: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one workspace: bytes of one file, bytes and number of all files."""

    file_bytes: int
    total_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Checkout:
    """The run's files as a real directory, while a tool runs in it.

    Both lists are filled when the checkout ends. `changed`: what the tool wrote, changed or
    (size -1) removed. `skipped`: what it left there that is no file of a workspace and so is
    neither served nor kept in a store: links, special files, names that no URL can carry,
    folders that can't be opened (with a `/` at the end).
    """

    path: Path
    changed: list[FileInfo]
    skipped: list[str] = field(default_factory=list[str])


UNLIMITED = Limits(2**62, 2**62, 2**31)
"""For what Tailrun keeps beside a run's files: it counts towards nobody's limits."""


class Workspace(Protocol):
    """The files of one run. Paths are relative and normalised by `normalise`.

    Every method raises `app.errors.Unprocessable` (code `invalid_path`) for a path that is
    empty, absolute, leaves the workspace, passes through a link or holds NUL;
    `NotFound` where there is no such file; `TooLarge` over a limit; `Conflict` where a file
    is to stand in the place of a folder or inside of a file; `app.errors.StorageError` while
    the store can't be reached or its disk is full.
    """

    async def write(self, path: str, content: AsyncIterator[bytes] | bytes) -> FileInfo:
        """Store a file, whole or not at all; folders on the way are made."""
        ...

    async def stat(self, path: str) -> FileInfo:
        """Describe one file."""
        ...

    def read(self, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield bytes `start` to `end` (exclusive) in pieces of at most 256 KiB."""
        ...

    async def list(self, prefix: str = "") -> list[FileInfo]:
        """Describe all files whose path starts with `prefix`, sorted by path."""
        ...

    async def delete(self, path: str) -> None:
        """Remove one file."""
        ...

    async def copy_from(self, other: Workspace) -> int:
        """Start with a copy of another run's files; return how many were copied.

        What is there already stays: it was uploaded for this run, or copied by an earlier attempt.
        """
        ...

    def checkout(self) -> AbstractAsyncContextManager[Checkout]:
        """Bring the files down to a directory; write back what changed at the end, also on failure.

        A file over a limit is not counted as changed (nor uploaded); the rest is, and then the
        end raises `TooLarge` naming it, unless the body raised: then its error has a note.
        When the body raises `app.errors.LostOwnership`, nothing is written back.
        """
        ...

    async def take_in(self, checkout: Checkout, removed: Collection[str]) -> None:
        """Take the files below `checkout.path` from a tool that worked elsewhere; delete `removed`.

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

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...
