"""Which store the settings ask for: S3 when a bucket is named, else a directory of this machine.

How much space each user's files take: a walk through the whole store, page by page.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from app.config import DataSettings, Settings, StorageSettings
from app.storage.api_staging import ApiStaging, StagedFiles
from app.storage.local_workspace import LocalWorkspaces
from app.storage.staging import Staging, StagingUnset
from app.storage.workspace import WorkspaceLimits, Workspaces


def open_workspaces(settings: Settings) -> Workspaces:
    """Return the workspaces of this deployment; close them at the end."""
    limits = workspace_limits(settings.storage)
    if settings.storage.s3_bucket is None:
        return LocalWorkspaces(settings.data.folder / "workspace", limits)
    from app.storage.s3_workspace import S3Workspaces  # noqa: PLC0415 - boto3 costs 30 MiB and 0.2 s

    secret = settings.storage.s3_secret_key
    return S3Workspaces(
        bucket=settings.storage.s3_bucket,
        endpoint=settings.storage.s3_endpoint,
        region=settings.storage.s3_region,
        access_key=settings.storage.s3_access_key,
        secret_key=secret.get_secret_value() if secret is not None else None,
        limits=limits,
        tmp_dir=settings.data.tmp_dir,
    )


def workspace_limits(settings: StorageSettings) -> WorkspaceLimits:
    """Return the bounds of every run's files."""
    return WorkspaceLimits(
        settings.file_max_bytes,
        settings.workspace_max_bytes,
        settings.workspace_max_files,
    )


def open_staging(settings: Settings, workspaces: Workspaces) -> Staging:
    """Return how files reach tool pods; lives as long as `workspaces`, and needs no closing.

    Raises:
        StagingUnset: there is no S3, and no setting names the API's address for pods.
    """
    if isinstance(workspaces, LocalWorkspaces):
        if not settings.storage.tool_sync_url:
            raise StagingUnset
        return ApiStaging(workspaces, staged_files(settings.data), settings.storage.tool_sync_url)
    from app.storage.s3_staging import S3Staging  # noqa: PLC0415 - boto3, as above
    from app.storage.s3_workspace import S3Workspaces  # noqa: PLC0415

    assert isinstance(workspaces, S3Workspaces)  # noqa: S101 - there is no third kind
    return S3Staging(workspaces)


def staged_files(settings: DataSettings) -> StagedFiles:
    """Return what is staged in the data folder, which API and worker share."""
    return StagedFiles(settings.folder / "staging")


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
