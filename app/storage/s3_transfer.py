"""The two transfers of a checkout from S3: all files down, and what a tool changed back up.

Files move up to eight at a time. The way down stops early when asked to; the way up runs to
its end. Nothing is deleted in the store unless all that should be stored was. Besides a file's content
the store keeps whether it is a program, its mode where that is unusual, and its time.

Folders without files and links are no objects of a bucket. A tool that works in a directory finds them
again in the next step: a repository without its empty folders is none. They are in one small object beside
the run's files, which is neither listed nor served.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson

from app.core.errors import Conflict, NotFound, TooLarge
from app.core.names import RESERVED, InvalidPath, is_normal, is_text, parents
from app.core.private_files import private_folder
from app.storage.s3_bucket import Bucket, Object, ObjectContent
from app.storage.threads import each
from app.storage.tree import Snapshot, TreeEntry, open_file, opened_folder, recreate, snapshot
from app.storage.workspace import PIECE, BareTree, Budget, Checkout, FileInfo, WorkspaceLimits

_OBJECT = f"{RESERVED}/tree.json"


def read_tree(bucket: Bucket, prefix: str, there: Iterable[Object]) -> BareTree:
    """Return what is kept of the run at `prefix`, if it is among the objects `there`. Blocking."""
    key = prefix + _OBJECT
    if all(each.key != key for each in there):
        return BareTree()
    try:
        content = bucket.get(key)
    except NotFound:  # deleted with its run since it was listed
        return BareTree()
    data = io.BytesIO()
    try:
        while piece := bucket.read(content, PIECE, key):
            data.write(piece)
    finally:
        content.body.close()
    return _parsed(data.getvalue())


def write_tree(bucket: Bucket, prefix: str, before: BareTree, now: BareTree) -> None:
    """Keep `now` in place of `before`. Blocking."""
    if now == before:
        return
    if now == BareTree():
        bucket.delete(prefix + _OBJECT)
        return
    data = orjson.dumps({"folders": now.folders, "links": now.links})
    bucket.put(prefix + _OBJECT, io.BytesIO(data))


def _parsed(data: bytes) -> BareTree:
    """Read what a worker wrote; what is malformed was written by a stranger, and counts as nothing."""
    try:
        said: Any = orjson.loads(data)
        folders = tuple(path for path in said["folders"] if is_normal(path))
        links = {path: target for path, target in said["links"].items() if is_normal(path) and _good(target)}
    except (AttributeError, KeyError, TypeError, ValueError):
        return BareTree()
    return BareTree(folders, links)


def _good(target: Any) -> bool:
    return isinstance(target, str) and is_text(target) and "\0" not in target and bool(target)


_USUAL_MODES = frozenset({0o644, 0o755})

Item = TypeVar("Item")


class Transfer:
    """Moves one run's files between its prefix in the bucket and a folder. Blocking."""

    def __init__(
        self, bucket: Bucket, prefix: str, folder: Path, pool: Executor, stop: threading.Event
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self.folder = folder
        self._pool = pool
        self._stop = stop
        self._before = Snapshot()
        self._shadowed: set[str] = set()
        self._tree: BareTree | None = None
        self._now: BareTree | None = None
        self._closed: list[str] = []

    def download(self, files: list[FileInfo], tree: BareTree) -> None:
        """Bring `files` down, and what `tree` says is there besides.

        A store can hold both `a` and `a/b`, which a directory can't: so it stays when a tool
        had replaced `a` by a folder and was cut off. The folder wins, `a` goes at the end.
        """
        folders = {folder for file in files for folder in parents(file.path)}
        self._shadowed = folders & {file.path for file in files}
        self._each(self._fetch, [file for file in files if file.path not in self._shadowed])
        recreate(self.folder, (), tree.folders, tree.links)
        self._before, self._tree = snapshot(self.folder), tree

    def expect(self, paths: Iterable[str], before: BareTree, now: BareTree | None) -> None:
        """Record `paths` as downloaded: those that are not in the folder were deleted.

        The folder holds no links and no folders of `now`: they are kept as they are said to be.
        """
        self._before = Snapshot({path: TreeEntry(-1, 0, 0, 0) for path in paths})
        self._tree, self._now = (None if now is None else before), now

    def upload(self, checkout: Checkout, limits: WorkspaceLimits, stored: list[FileInfo]) -> None:
        """Store what changed and delete what was removed; fill `checkout`.

        Raises:
            TooLarge, Conflict: something is over a limit, or a file that came over HTTP meanwhile
            is in the way; the rest was stored all the same.
            StorageError: the store does not answer; to be called again.
        """
        after = snapshot(self.folder)
        removed = {*self._before.removed(after), *self._shadowed}
        budget = Budget(limits, stored)
        budget.release(removed)
        wanted, failure = _fitting(budget, self._before.changed(after), after)
        self._stop.clear()
        self._closed.clear()
        self._each(lambda path: self._store(path, after.files[path]), wanted)
        self._each(lambda path: self._bucket.delete(self._prefix + path), removed - set(wanted))
        if self._tree is not None:
            now = self._now if self._now is not None else BareTree(tuple(after.bare_folders()), after.links)
            tree, over = now.within(limits)
            write_tree(self._bucket, self._prefix, self._tree, tree)
            failure = failure or over
        stored_now = [path for path in wanted if path not in self._closed]
        checkout.changed.extend(after.files[path].info(path) for path in stored_now)
        checkout.changed.extend(FileInfo(path, -1, 0) for path in sorted(removed - set(wanted)))
        checkout.skipped.extend([*after.skipped, *sorted(self._closed)])
        if failure is not None:
            raise failure

    def _fetch(self, file: FileInfo) -> None:
        key = self._prefix + file.path
        target = self.folder / file.path
        private_folder(target.parent)
        content = self._bucket.get(key)
        try:
            with target.open("wb") as out:
                while not self._stop.is_set() and (piece := self._bucket.read(content, PIECE, key)):
                    out.write(piece)
        finally:
            content.body.close()
        _dress(target, content, file.modified_at)

    def _store(self, path: str, found: TreeEntry) -> None:
        """Store one file; one that can't be opened, or is gone, is put among the `skipped`."""
        *folders, name = path.split("/")
        try:
            with opened_folder(self.folder, folders) as folder:
                fd = open_file(folder, name)
        except (PermissionError, FileNotFoundError, NotADirectoryError, InvalidPath):
            self._closed.append(path)
            return
        with os.fdopen(fd, "rb") as file:
            key, properties = self._prefix + path, _properties(found)
            self._bucket.put(key, file, executable=found.executable, properties=properties)

    def _each(self, move: Callable[[Item], None], items: Iterable[Item]) -> None:
        each(self._pool, move, items, self._stop)


def _properties(found: TreeEntry) -> Mapping[str, str]:
    mode = {} if found.mode in _USUAL_MODES else {"mode": f"{found.mode:o}"}
    return {**mode, "mtime": str(found.mtime_ns)}


def _dress(target: Path, content: ObjectContent, stored_at: int) -> None:
    """Give a file the mode and the time that it had; else those of its object, in microseconds.

    Never the time of now: whatever a tool writes from now on is seen as a change.
    """
    mode, mtime_ns = 0o755 if content.executable else 0o644, stored_at * 1000
    with suppress(KeyError, ValueError):
        mtime_ns = int(content.properties["mtime"])
    with suppress(KeyError, ValueError):
        mode = int(content.properties["mode"], 8) & 0o777
    with suppress(OverflowError):
        os.utime(target, ns=(mtime_ns, mtime_ns))
    target.chmod(mode)


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
