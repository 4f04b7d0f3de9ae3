"""The two transfers of a checkout from S3: all files down, and what a tool changed back up.

Files move up to eight at a time. The way down stops early when asked to; the way up runs to
its end. Nothing is deleted in the store unless all that should be stored was.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from app.errors import Conflict, TooLarge
from app.paths import parents
from app.private_files import private_folder
from app.storage.budget import Budget
from app.storage.parallel import each
from app.storage.pieces import PIECE
from app.storage.s3_bucket import Bucket
from app.storage.tree import Found, Snapshot, open_file, opened_folder, snapshot
from app.storage.workspace import Checkout, FileInfo, Limits

Item = TypeVar("Item")


class Transfer:
    """Moves one run's files between its prefix in the bucket and a folder. Blocking."""

    def __init__(
        self, bucket: Bucket, prefix: str, folder: Path, pool: Executor, stop: threading.Event
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._folder = folder
        self._pool = pool
        self._stop = stop
        self._before = Snapshot()
        self._shadowed: set[str] = set()

    def download(self, files: list[FileInfo]) -> None:
        """Bring `files` down.

        A store can hold both `a` and `a/b`, which a directory can't: so it stands when a tool
        had replaced `a` by a folder and was cut off. The folder wins, `a` goes at the end.
        """
        folders = {folder for file in files for folder in parents(file.path)}
        self._shadowed = folders & {file.path for file in files}
        self._each(self._fetch, [file for file in files if file.path not in self._shadowed])
        self._before = snapshot(self._folder)

    def expect(self, paths: Iterable[str]) -> None:
        """Take it that `paths` were downloaded: those that are not in the folder are gone."""
        self._before = Snapshot({path: Found(-1, 0, 0, executable=False) for path in paths})

    def upload(self, checkout: Checkout, limits: Limits, stored: list[FileInfo]) -> None:
        """Store what changed and delete what is gone; fill `checkout`.

        Raises:
            TooLarge, Conflict: something is over a limit, or a file that came over HTTP meanwhile
            is in the way; the rest was stored all the same.
        """
        after = snapshot(self._folder)
        removed = {*self._before.removed(after), *self._shadowed}
        budget = Budget(limits, stored)
        budget.release(removed)
        wanted, failure = _fitting(budget, self._before.changed(after), after)
        self._stop.clear()
        self._each(lambda path: self._store(path, executable=after.files[path].executable), wanted)
        self._each(lambda path: self._bucket.delete(self._prefix + path), removed - set(wanted))
        checkout.changed.extend(after.files[path].info(path) for path in wanted)
        checkout.changed.extend(FileInfo(path, -1, 0) for path in sorted(removed - set(wanted)))
        checkout.skipped.extend(after.skipped)
        if failure is not None:
            raise failure

    def _fetch(self, file: FileInfo) -> None:
        key = self._prefix + file.path
        target = self._folder / file.path
        private_folder(target.parent)
        content = self._bucket.get(key)
        try:
            with target.open("wb") as out:
                while not self._stop.is_set() and (piece := self._bucket.read(content, PIECE, key)):
                    out.write(piece)
        finally:
            content.body.close()
        target.chmod(0o755 if content.executable else 0o644)
        # The time of the object, not of now: whatever a tool writes from now on is seen as a change.
        os.utime(target, ns=(file.modified_at * 1000, file.modified_at * 1000))

    def _store(self, path: str, *, executable: bool) -> None:
        *folders, name = path.split("/")
        with opened_folder(self._folder, folders) as folder:
            fd = open_file(folder, name)
        with os.fdopen(fd, "rb") as file:
            self._bucket.put(self._prefix + path, file, executable=executable)

    def _each(self, move: Callable[[Item], None], items: Iterable[Item]) -> None:
        each(self._pool, move, items, self._stop)


def _fitting(
    budget: Budget, changed: list[str], after: Snapshot
) -> tuple[list[str], TooLarge | Conflict | None]:
    """Return what fits, and the error of the first that doesn't."""
    wanted: list[str] = []
    failure: TooLarge | Conflict | None = None
    for path in changed:
        try:
            budget.take(path, after.files[path].size)
        except (TooLarge, Conflict) as error:
            failure = failure or error
        else:
            wanted.append(path)
    return wanted, failure
