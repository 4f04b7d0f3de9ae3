"""Which store the settings ask for: S3 when a bucket is named, else a directory of this machine."""

from __future__ import annotations

from app.config import Settings
from app.storage.local_workspace import LocalWorkspaces
from app.storage.workspace import Limits, Workspaces


def open_workspaces(settings: Settings) -> Workspaces:
    """Return the workspaces of this deployment; close them at the end."""
    limits = Limits(settings.file_max_bytes, settings.workspace_max_bytes, settings.workspace_max_files)
    if settings.s3_bucket is None:
        return LocalWorkspaces(settings.data_dir / "workspace", limits)
    from app.storage.s3_workspace import S3Workspaces  # noqa: PLC0415 - boto3 costs 30 MiB and 0.2 s

    secret = settings.s3_secret_key
    return S3Workspaces(
        bucket=settings.s3_bucket,
        endpoint=settings.s3_endpoint,
        region=settings.s3_region,
        access_key=settings.s3_access_key,
        secret_key=secret.get_secret_value() if secret is not None else None,
        limits=limits,
        tmp_dir=settings.tmp_dir,
    )
