"""What is in a run's files and is no object of a bucket: folders without files, and links.

A tool that works in a directory finds them again in the next step, so a checkout from a store brings
them back as well: a repository without its empty folders is none. They are in one small object beside
the run's files, which is neither listed nor served.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from app.core.errors import NotFound, TooLarge
from app.core.names import RESERVED, is_normal, is_text
from app.storage.s3_bucket import Bucket, Object
from app.storage.tree import Snapshot
from app.storage.workspace import PIECE, WorkspaceLimits

_OBJECT = f"{RESERVED}/tree.json"


@dataclass(frozen=True, slots=True)
class BareTree:
    """Folders that hold no file, and where links lead."""

    folders: tuple[str, ...] = ()
    links: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, found: Snapshot, limits: WorkspaceLimits) -> tuple[BareTree, TooLarge | None]:
        """Return what there is besides files, and the error of what is over the limit."""
        folders, links = found.bare_folders(), sorted(found.links.items())
        over = len(folders) + len(links) - limits.files
        error = None
        if over > 0:
            error = TooLarge(
                f"A run keeps at most {limits.files} links and folders without files (WORKSPACE_MAX_FILES); "
                f"{over} were left out."
            )
        kept = links[: limits.files]
        return cls(tuple(folders[: limits.files - len(kept)]), dict(kept)), error

    def under(self, mine: BareTree) -> BareTree:
        """Return both together; where they differ, `mine` is right."""
        folders = tuple(sorted({*self.folders, *mine.folders}))
        return BareTree(folders, {**self.links, **mine.links})


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
