"""Workspaces as directories: `<root>/users/{user_id}/runs/{run_id}/`.

Tools work in place in the very directory that this serves files from, so it is written for
a directory that changes under its hands (see `tree`). A file is written beside the
workspaces and renamed into place whole; limits are checked again under a lock just before.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Generator
from pathlib import Path

from app.core.errors import Conflict, NotFound, StorageError, TailrunError, TooLarge, Unprocessable
from app.core.names import InvalidPath, normalise, normalise_prefix, private_key, run_key
from app.storage.scratch import Scratch, purge
from app.storage.threads import Threads
from app.storage.tree import (
    Snapshot,
    TreeEntry,
    explained,
    is_link,
    open_file,
    opened_folder,
    recreate,
    remove_empty,
    remove_folders,
    remove_links,
    snapshot,
)
from app.storage.workspace import (
    PIECE,
    UNLIMITED,
    BareTree,
    Budget,
    Checkout,
    Copied,
    FileInfo,
    Patience,
    Workspace,
    WorkspaceLimits,
    checked_out,
    folder_in_the_way,
    impatient,
    merged,
)

_STRIPES = 64
_FOLDER = "the run's folder"


class LocalWorkspaces:
    """All workspaces below one directory, which several processes may share."""

    def __init__(self, root: Path, limits: WorkspaceLimits) -> None:
        self.root = root.absolute()
        self.limits = limits
        self.scratch = Scratch(self.root / ".scratch")
        self.threads = Threads()

    def open(self, user_id: str, run_id: str) -> Workspace:
        return LocalWorkspace(self, run_key(user_id, run_id), self.limits)

    def private(self, user_id: str, run_id: str) -> Workspace:
        """Return what Tailrun itself keeps of one run."""
        return LocalWorkspace(self, private_key(user_id, run_id), UNLIMITED)

    async def delete_run(self, user_id: str, run_id: str) -> None:
        """Remove all files of one run: gone at once, then unlinked one by one."""
        key = run_key(user_id, run_id)
        await self.threads.run(self._delete_run, key)

    async def ping(self) -> None:
        """Raise `StorageError` unless the directory can be written."""
        await self.threads.run(self._ping)

    async def close(self) -> None:
        """Remove this process's temporary files."""
        await self.threads.run(self.scratch.close)

    def _delete_run(self, key: str) -> None:
        *folders, run_id = key.split("/")
        with explained(_FOLDER), contextlib.suppress(FileNotFoundError):
            trash = Path(tempfile.mkdtemp(dir=self.scratch.folder()))
            with opened_folder(self.root, folders) as parent:
                os.rename(run_id, trash, src_dir_fd=parent)
            purge(trash)

    def _ping(self) -> None:
        try:
            self.scratch.folder()
        except OSError as error:  # no file of a run is meant, so it is always the store's fault
            raise StorageError(f"The workspace directory {self.root}: {error.strerror}.") from error
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise StorageError(f"The workspace directory {self.root} can't be written.")


class LocalWorkspace:
    """The files of one run in a directory."""

    def __init__(self, home: LocalWorkspaces, key: str, limits: WorkspaceLimits) -> None:
        self._home = home
        self._key = key
        self._limits = limits
        self._threads = home.threads
        self._run = home.threads.run

    async def write(
        self, path: str, content: AsyncIterator[bytes] | bytes, *, executable: bool | None = None
    ) -> FileInfo:
        """Store a file, whole or not at all."""
        path = normalise(path)
        if isinstance(content, bytes):
            return await self._run(self._write, content, path, executable)
        budget = await self._run(self._budget)
        room = budget.room(path)
        async with self._threads.opened(self._temporary, _discard, path) as (fd, temp):
            size = 0
            async for piece in merged(content):
                size += len(piece)
                if size > room:
                    raise budget.too_large(path, room)
                await self._run(_append, fd, piece, path)
            return await self._run(self._upload, fd, temp, path, executable)

    async def stat(self, path: str) -> FileInfo:
        path = normalise(path)
        async with self._threads.opened(self._open, os.close, path) as fd:
            return TreeEntry.of(os.fstat(fd)).info(path)

    async def read(self, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield bytes `start` to `end` (exclusive)."""
        path = normalise(path)
        async with self._threads.opened(self._open, os.close, path) as fd:
            while end is None or start < end:
                length = PIECE if end is None else min(PIECE, end - start)
                piece = await self._run(os.pread, fd, length, start)
                if not piece:
                    return
                start += len(piece)
                yield piece

    async def list(self, prefix: str = "") -> list[FileInfo]:
        """Describe all files whose path starts with `prefix`."""
        prefix = normalise_prefix(prefix)
        found = (await self._run(self._snapshot)).files
        return [found[path].info(path) for path in sorted(found) if path.startswith(prefix)]

    async def delete(self, path: str) -> None:
        path = normalise(path)
        await self._run(self._delete, path)

    async def copy_from(self, other: Workspace) -> Copied:
        """Copy another run's files: real copies, for tools change files in place."""
        if not isinstance(other, LocalWorkspace):
            raise TypeError(f"A directory workspace can't copy from {type(other).__name__}.")
        return await self._run(self._copy_from, other)

    @contextlib.asynccontextmanager
    async def checkout(self, patience: Patience = impatient) -> AsyncGenerator[Checkout]:
        """Give out the directory itself."""
        before = await self._run(self._make)
        checkout = Checkout(self._home.root / self._key, [])
        async with checked_out(checkout, lambda: self._run(self._settle, before, checkout), patience):
            yield checkout

    @contextlib.asynccontextmanager
    async def read_only(self) -> AsyncGenerator[Path]:
        """Give out the directory itself; it is not made where there is none."""
        yield self._home.root / self._key

    async def take_in(
        self, checkout: Checkout, removed: Collection[str], tree: BareTree | None = None
    ) -> None:
        """Move files in from a folder of the same disk."""
        await self._run(self._take_in, checkout, removed, tree)

    # Blocking from here on.

    def _write(self, content: bytes, path: str, executable: bool | None) -> FileInfo:
        """Write what is in memory in one trip to a thread: of a small file it is the most expensive part."""
        budget = self._budget()
        if len(content) > (room := budget.room(path)):
            raise budget.too_large(path, room)
        temporary = self._temporary(path)
        try:
            _append(temporary[0], content, path)
            return self._commit(*temporary, path, executable)
        finally:
            _discard(temporary)

    def _make(self) -> Snapshot:
        with explained(_FOLDER), opened_folder(self._home.root, self._key.split("/"), create=True):
            return self._snapshot()

    def _settle(self, before: Snapshot, checkout: Checkout) -> None:
        """Fill `checkout`; raise the first `TooLarge` among what changed."""
        after = self._snapshot()
        changed = before.changed(after)
        kept = after.files.keys() - set(changed)
        budget = Budget(self._limits, [after.files[path].info(path) for path in kept])
        failure: TooLarge | None = None
        for path in changed:
            try:
                budget.take(path, after.files[path].size)
            except TooLarge as error:
                failure = failure or error
            else:
                checkout.changed.append(after.files[path].info(path))
        for path in before.removed(after):
            checkout.changed.append(FileInfo(path, -1, before.files[path].mtime_ns // 1000))
        checkout.skipped.extend(after.skipped)
        if failure is not None:
            raise failure

    def _take_in(self, checkout: Checkout, removed: Collection[str], tree: BareTree | None) -> None:
        with self._locked():
            if tree is None:
                failure = self._take_files(checkout, removed)
            else:
                kept, over = tree.within(self._limits)
                place = self._home.root, self._key.split("/")
                with explained(_FOLDER, writing=True):
                    remove_links(*place, but=kept.links)  # first, for a file may be where one was
                failure = self._take_files(checkout, removed) or over
                with explained(_FOLDER, writing=True):
                    remove_folders(*place, kept.folders, kept.links)
                    recreate(*place, kept.folders, kept.links)
        if failure is not None:
            raise failure

    def _take_files(self, checkout: Checkout, removed: Collection[str]) -> TailrunError | None:
        """Delete and move in, as far as it goes; return the first error of a file."""
        files = snapshot(checkout.path).files
        failure: TailrunError | None = None
        budget = self._budget()
        budget.release(removed)
        for path in sorted(removed):  # first, for one of them may be where a folder is to be
            with contextlib.suppress(NotFound, Unprocessable):
                self._delete(path)
            if path not in files:
                checkout.changed.append(FileInfo(path, -1, 0))
        for path in sorted(files):
            try:
                budget.take(path, files[path].size)
                self._place(checkout.path / path, path)
            except StorageError:
                raise
            except TailrunError as error:
                failure = failure or error
            else:
                checkout.changed.append(files[path].info(path))
        return failure

    def _copy_from(self, other: LocalWorkspace) -> Copied:
        with self._locked():
            budget = self._budget()
            source = other._snapshot()
            files = {path: found for path, found in source.files.items() if path not in budget}
            for path, found in files.items():
                budget.take(path, found.size)
            copied, closed = list[str](), [path for path in source.skipped if path.endswith("/")]
            try:
                for path, found in files.items():
                    (copied if self._copy(other, path, found) else closed).append(path)
            except BaseException:
                for path in copied:
                    self._delete(path)
                raise
            with explained(_FOLDER, writing=True):
                recreate(self._home.root, self._key.split("/"), source.bare_folders(), source.links)
        return Copied(len(copied), closed)

    def _copy(self, other: LocalWorkspace, path: str, found: TreeEntry) -> bool:
        """Copy one file; say whether it could be opened."""
        try:
            source = other._open(path)
        except (Conflict, NotFound, InvalidPath):  # a tool took the permission away, or changes it just now
            return False
        try:
            target, temp = self._temporary(path)
            try:
                _copy_bytes(source, target, found.size, path)
                os.fchmod(target, found.mode)
                os.utime(target, ns=(found.mtime_ns, found.mtime_ns))
                self._place(temp, path)
            finally:
                _discard((target, temp))
        finally:
            os.close(source)
        return True

    def _snapshot(self) -> Snapshot:
        with explained(_FOLDER):
            return snapshot(self._home.root, self._key.split("/"))

    def _budget(self, snapshot: Snapshot | None = None) -> Budget:
        found = (snapshot or self._snapshot()).files
        return Budget(self._limits, [file.info(path) for path, file in found.items()])

    def _temporary(self, path: str) -> tuple[int, Path]:
        with explained(path):
            fd, name = tempfile.mkstemp(dir=self._home.scratch.folder())
            return fd, Path(name)

    def _upload(self, fd: int, temp: Path, path: str, executable: bool | None) -> FileInfo:
        """Put an uploaded file in its place, on the disk: what was answered outlives a power cut.

        What a step writes has no such promise, like what programs write: a run can be run again.
        """
        with explained(path, writing=True):
            os.fsync(fd)
        return self._commit(fd, temp, path, executable, durably=True)

    def _commit(
        self, fd: int, temp: Path, path: str, executable: bool | None, *, durably: bool = False
    ) -> FileInfo:
        with self._locked():
            there = self._snapshot()
            if executable is None:
                executable = path in there.files and there.files[path].executable
            os.fchmod(fd, _mode(executable=executable))
            found = TreeEntry.of(os.fstat(fd))
            self._budget(there).take(path, found.size)
            self._place(temp, path, durably=durably)
        return found.info(path)

    def _place(self, temp: Path, path: str, *, durably: bool = False) -> None:
        with explained(path, writing=True), self._parent(path, create=True) as (folder, name):
            if is_link(folder, name):
                raise InvalidPath(path, "it passes through a link")
            try:
                os.rename(temp, name, dst_dir_fd=folder)
            except IsADirectoryError:
                if not remove_empty(folder, name):
                    raise folder_in_the_way(path) from None
                os.rename(temp, name, dst_dir_fd=folder)
            if durably:
                os.fsync(folder)

    def _open(self, path: str) -> int:
        with explained(path), self._parent(path) as (folder, name):
            return open_file(folder, name)

    def _delete(self, path: str) -> None:
        with explained(path), self._parent(path) as (folder, name):
            os.close(open_file(folder, name))
            os.unlink(name, dir_fd=folder)

    @contextlib.contextmanager
    def _parent(self, path: str, *, create: bool = False) -> Generator[tuple[int, str]]:
        *folders, name = path.split("/")
        parts = [*self._key.split("/"), *folders]
        with opened_folder(self._home.root, parts, create=create) as folder:
            yield folder, name

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        """One writer at a time checks the limits of this run, over all processes."""
        name = f"commit-{zlib.crc32(self._key.encode()) % _STRIPES}"
        with explained(_FOLDER), self._home.scratch.lock(name):
            yield


def _mode(*, executable: bool) -> int:
    return 0o755 if executable else 0o644


def _discard(temporary: tuple[int, Path]) -> None:
    """Close a temporary file, and remove it unless it was renamed into its place."""
    fd, path = temporary
    os.close(fd)
    path.unlink(missing_ok=True)


def _append(fd: int, piece: bytes, path: str) -> None:
    with explained(path):
        left = memoryview(piece)
        while left:
            left = left[os.write(fd, left) :]


def _copy_bytes(source: int, target: int, size: int, path: str) -> None:
    """Copy at most `size` bytes: a file that still grows is copied as it was counted."""
    while size > 0 and (piece := os.read(source, min(PIECE, size))):
        _append(target, piece, path)
        size -= len(piece)
