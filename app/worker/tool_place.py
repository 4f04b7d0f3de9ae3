"""Where this worker runs tools: as processes of its own machine, or as Jobs of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from app.config import Settings
from app.execution.executor import CannotRun, Executor
from app.execution.limits import ProgramLimits
from app.execution.process import LocalExecutor
from app.storage.factory import open_staging
from app.storage.staging import StagingUnset
from app.storage.workspace import Workspaces


def open_executor(
    settings: Settings, workspaces: Workspaces, tmp_dir: Path, clock: Callable[[], int]
) -> Executor:
    """Return the executor that `TOOL_EXECUTOR` asks for.

    Raises:
        CannotRun: the settings do not say enough for it.
    """
    if settings.tool_executor == "local":
        return LocalExecutor(
            grace_s=settings.cancel_grace_s,
            silence_s=settings.lease_s - 1,
            tmp_dir=tmp_dir,
            limits=ProgramLimits(
                settings.tool_cpu_s, settings.tool_memory_bytes, settings.tool_file_max_bytes
            ),
        )
    from app.k8s.executor import open_executor as open_cluster  # noqa: PLC0415 - a laptop needs none of it

    try:
        staging = open_staging(settings, workspaces)
    except StagingUnset as error:
        raise CannotRun(str(error) or "TOOL_EXECUTOR=kubernetes needs S3_BUCKET or TOOL_SYNC_URL") from error
    return open_cluster(settings, staging, clock, Random())  # noqa: S311 - jitter
