"""Workspaces in any S3-compatible store: `users/{user_id}/runs/{run_id}/<path>`.

Objects are written whole or not at all by the store itself. Tools need a real directory, so
a checkout brings the files down and takes back what changed (see `s3_checkout`). WorkspaceLimits are
checked against a listing just before an upload; two processes that write the same run at the
same moment may pass them by one file each.

What a checkout brings down is what the last one left, as in a directory: modes and times of files are
kept beside each object, folders without files and links in one more (`BareTree`).
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from app.core.errors import NotFound, StorageError
from app.core.names import is_normal, normalise, normalise_prefix, private_key, run_key
from app.storage.s3_bucket import Bucket, Object, ObjectContent
from app.storage.s3_transfer import Transfer, read_tree, write_tree
from app.storage.scratch import Scratch, purge
from app.storage.threads import Threads, each
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
    impatient,
    merged,
)

_TRANSFERS = 8


class S3Workspaces:
    """All workspaces in one bucket."""

    def __init__(
        self,
        bucket: str,
        *,
        endpoint: str | None,
        region: str | None,
        access_key: str | None,
        secret_key: str | None,
        limits: WorkspaceLimits,
        tmp_dir: Path,
    ) -> None:
        self.bucket = Bucket(
            bucket, endpoint=endpoint, region=region, access_key=access_key, secret_key=secret_key
        )
        self.limits = limits
        self.scratch = Scratch(tmp_dir.absolute() / "workspaces")
        self.threads = Threads()
        self.transfers = ThreadPoolExecutor(_TRANSFERS, thread_name_prefix="s3-transfer")

    def open(self, user_id: str, run_id: str) -> Workspace:
        return S3Workspace(self, run_key(user_id, run_id) + "/", self.limits)

    def private(self, user_id: str, run_id: str) -> Workspace:
        """Return what Tailrun itself keeps of one run."""
        return S3Workspace(self, private_key(user_id, run_id) + "/", UNLIMITED)

    async def delete_run(self, user_id: str, run_id: str) -> None:
        await self.threads.run(self._delete_run, run_key(user_id, run_id) + "/")

    async def ping(self) -> None:
        """Raise `StorageError` unless the bucket answers."""
        await self.threads.run(self.bucket.check)

    async def close(self) -> None:
        """Close connections and threads, and delete temporary files."""
        await self.threads.run(self._close)

    def _delete_run(self, prefix: str) -> None:
        keys = [found.key for found in self.bucket.list(prefix)]
        each(self.transfers, self.bucket.delete, keys)

    def _close(self) -> None:
        self.transfers.shutdown()
        self.bucket.close()
        self.scratch.close()


class S3Workspace:
    """The files of one run in a bucket."""

    def __init__(self, home: S3Workspaces, prefix: str, limits: WorkspaceLimits) -> None:
        self._home = home
        self._limits = limits
        self._bucket = home.bucket
        self._prefix = prefix
        self._threads = home.threads
        self._run = home.threads.run

    async def write(
        self, path: str, content: AsyncIterator[bytes] | bytes, *, executable: bool | None = None
    ) -> FileInfo:
        """Store a file, whole or not at all: it is collected on disk before it is uploaded."""
        path = normalise(path)
        budget = await self._run(self._budget)
        room = budget.room(path)
        async with self._threads.opened(self._spool, _close) as spool:
            size = 0
            async for piece in merged(content):
                size += len(piece)
                if size > room:
                    raise budget.too_large(path, room)
                await self._run(_append, spool, piece)
            return await self._run(self._upload, path, spool, size, executable)

    async def stat(self, path: str) -> FileInfo:
        path = normalise(path)
        return self._info(await self._run(self._bucket.head, self._prefix + path))

    async def read(self, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield bytes `start` to `end` (exclusive)."""
        key = self._prefix + normalise(path)
        if end is not None and end <= start:
            await self._run(self._bucket.head, key)
            return
        try:
            async with self._threads.opened(self._bucket.get, _close_content, key, start, end) as content:
                while piece := await self._run(self._bucket.read, content, PIECE, key):
                    yield piece
        except EOFError:
            return

    async def list(self, prefix: str = "") -> list[FileInfo]:
        """Describe all files whose path starts with `prefix`."""
        prefix = normalise_prefix(prefix)
        return await self._run(self._files, prefix)

    async def delete(self, path: str) -> None:
        key = self._prefix + normalise(path)
        await self._run(self._bucket.head, key)
        await self._run(self._bucket.delete, key)

    async def copy_from(self, other: Workspace) -> Copied:
        """Copy another run's files inside of the store."""
        if not isinstance(other, S3Workspace):
            raise TypeError(f"An S3 workspace can't copy from {type(other).__name__}.")
        return await self._run(self._copy_from, other)

    @contextlib.asynccontextmanager
    async def checkout(self, patience: Patience = impatient) -> AsyncGenerator[Checkout]:
        """Bring the files down to a temporary directory; take back what changed."""
        async with self._downloaded() as transfer:
            checkout = Checkout(transfer.folder, [])

            async def write_back() -> None:
                await self._run(lambda: transfer.upload(checkout, self._limits, self._files()))

            async with checked_out(checkout, write_back, patience):
                yield checkout

    @contextlib.asynccontextmanager
    async def read_only(self) -> AsyncGenerator[Path]:
        """Bring the files down to a temporary directory."""
        async with self._downloaded() as transfer:
            yield transfer.folder

    @contextlib.asynccontextmanager
    async def _downloaded(self) -> AsyncGenerator[Transfer]:
        async with self._threads.opened(self._folder, purge) as folder:
            stop = threading.Event()
            transfer = Transfer(self._bucket, self._prefix, folder, self._home.transfers, stop)
            await self._run(lambda: transfer.download(*self._all()), on_cancel=stop.set)
            yield transfer

    async def take_in(
        self, checkout: Checkout, removed: Collection[str], tree: BareTree | None = None
    ) -> None:
        """Store what is in a folder, eight files at a time."""
        stop = threading.Event()
        transfer = Transfer(self._bucket, self._prefix, checkout.path, self._home.transfers, stop)

        def take() -> None:
            stored, before = self._all()
            transfer.expect(removed, before, tree)
            transfer.upload(checkout, self._limits, stored)

        await self._run(take)

    # Blocking from here on.

    def _files(self, prefix: str = "") -> list[FileInfo]:
        """List; keys that strangers put there and that are no normal path are not ours to serve."""
        return self._ours(self._bucket.list(self._prefix + prefix))

    def _ours(self, objects: list[Object]) -> list[FileInfo]:
        found = map(self._info, objects)
        return sorted((file for file in found if is_normal(file.path)), key=lambda file: file.path)

    def _info(self, item: Object) -> FileInfo:
        path, version = item.key.removeprefix(self._prefix), item.etag.strip('"')
        return FileInfo(path, item.size, item.modified_at, version, item.executable)

    def _all(self) -> tuple[list[FileInfo], BareTree]:
        """Return the files and what else there is, which costs a request only where it is there."""
        found = self._bucket.list(self._prefix)
        return self._ours(found), read_tree(self._bucket, self._prefix, found)

    def _budget(self) -> Budget:
        return Budget(self._limits, self._files())

    def _upload(self, path: str, spool: IO[bytes], size: int, executable: bool | None) -> FileInfo:
        key, budget = self._prefix + path, self._budget()
        if executable is None and path in budget:
            with contextlib.suppress(NotFound):  # it was there a moment ago
                executable = self._bucket.head(key).executable
        budget.take(path, size)
        spool.seek(0)
        self._bucket.put(key, spool, executable=bool(executable))
        return self._info(self._bucket.head(key))

    def _copy_from(self, other: S3Workspace) -> Copied:
        (mine, my_tree), (theirs, tree) = self._all(), other._all()
        budget = Budget(self._limits, mine)
        files = [file for file in theirs if file.path not in budget]
        for file in files:
            budget.take(file.path, file.size)

        copied: list[str] = []

        def copy(file: FileInfo) -> None:
            self._bucket.copy(other._prefix + file.path, self._prefix + file.path)
            copied.append(self._prefix + file.path)

        try:
            each(self._home.transfers, copy, files)
        except BaseException:
            each(self._home.transfers, self._bucket.delete, copied)
            raise
        write_tree(self._bucket, self._prefix, my_tree, tree.under(my_tree))
        return Copied(len(files))

    def _spool(self) -> IO[bytes]:
        try:
            return tempfile.TemporaryFile(dir=self._home.scratch.folder())
        except OSError as error:
            raise _no_disk(error) from error

    def _folder(self) -> Path:
        try:
            return Path(tempfile.mkdtemp(dir=self._home.scratch.folder()))
        except OSError as error:
            raise _no_disk(error) from error


def _append(spool: IO[bytes], piece: bytes) -> None:
    try:
        spool.write(piece)
    except OSError as error:
        raise _no_disk(error) from error


def _close(spool: IO[bytes]) -> None:
    spool.close()


def _close_content(content: ObjectContent) -> None:
    content.body.close()


def _no_disk(error: OSError) -> StorageError:
    return StorageError(f"Temporary files can't be written: {error.strerror}.")
