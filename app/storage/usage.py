"""How much space each user's files take: a walk through the whole store, page by page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from app.storage.local_workspace import LocalWorkspaces
from app.storage.workspace import Workspaces

_USERS = "users"


async def usage(workspaces: Workspaces) -> Counter[str]:
    """Return the bytes of all files, by user; `StorageError` while the store can't be reached.

    Costs a request for each 1,000 objects of a bucket, or a look at each file of a directory.
    """
    if isinstance(workspaces, LocalWorkspaces):
        return await workspaces.threads.run(_added, _local(workspaces.root / _USERS))
    from app.storage.s3_workspace import S3Workspaces  # noqa: PLC0415 - boto3 costs 30 MiB and 0.2 s

    assert isinstance(workspaces, S3Workspaces)  # noqa: S101 - there is no third kind
    bucket = workspaces.bucket
    objects = ((each.key.split("/", 2)[1], each.size) for each in bucket.each(_USERS + "/"))
    return await workspaces.threads.run(_added, objects)


def _added(files: Iterator[tuple[str, int]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for user, size in files:
        found[user] += size
    return found


def _local(root: Path) -> Iterator[tuple[str, int]]:
    for user in root.iterdir() if root.is_dir() else ():
        for folder, _, names in os.walk(user):
            for name in names:
                try:
                    yield user.name, os.lstat(Path(folder, name)).st_size
                except FileNotFoundError:  # gone since it was listed
                    continue
