"""Whether this machine has enough left for another run: memory, disk, file handles.

A worker that lacks one claims nothing, so that a run waits or goes elsewhere instead of failing
here. How much is left is measured in `tailrun.process.host`.

Where this worker runs tools: as processes of its own machine, or as Jobs of a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import structlog

from app.config import Settings
from app.core.telemetry import LACKS
from app.execution.executor import CannotRun, Executor
from app.execution.guard_client import ProgramLimits
from app.execution.process import LocalExecutor
from app.storage.factory import open_staging
from app.storage.staging import StagingUnset
from app.storage.workspace import Workspaces
from tailrun.process.host import Need, lacks

FRESH_S = 1.0
_ROOT = Path("/")

log = structlog.get_logger()


class Resources:
    """Looks at most once a second. `folder` is where runs write; `root` lets tests pretend a machine."""

    def __init__(
        self, need: Need, folder: Path, clock: Callable[[], float] = time.monotonic, root: Path = _ROOT
    ) -> None:
        self._need, self._folder, self._clock, self._root = need, folder, clock, root
        self._looked_at = float("-inf")
        self._lack = ""

    @classmethod
    def of(cls, settings: Settings) -> Resources:
        """Look after what the settings ask for."""
        need = Need(
            settings.worker.min_free_memory_bytes,
            settings.worker.min_free_disk_bytes,
            settings.worker.min_free_fds,
        )
        return cls(need, settings.data.tmp_dir)

    def lack(self) -> str:
        """Say what there is too little of, empty if nothing; a change goes into the log and the metric."""
        now = self._clock()
        if now - self._looked_at >= FRESH_S:
            self._looked_at = now
            before, self._lack = self._lack, "; ".join(self._look())
            if self._lack and not before:
                log.warning("claiming nothing, this machine lacks something", lack=self._lack)
            elif before and not self._lack:
                log.info("claiming again, this machine has enough")
        return self._lack

    def _look(self) -> Iterator[str]:
        lacking = dict(lacks(self._need, self._folder, self._root))
        for name, setting in _SETTING.items():
            LACKS.labels(name).set(name in lacking)
            if name in lacking:
                yield f"{lacking[name]} (MIN_FREE_{setting})"


_SETTING = {"memory": "MEMORY_BYTES", "disk": "DISK_BYTES", "fds": "FDS"}


def open_executor(
    settings: Settings, workspaces: Workspaces, tmp_dir: Path, clock: Callable[[], int]
) -> Executor:
    """Return the executor that `TOOL_EXECUTOR` asks for.

    Raises:
        CannotRun: the settings do not say enough for it.
    """
    if settings.tools.executor == "local":
        return LocalExecutor(
            grace_s=settings.tools.cancel_grace_s,
            silence_s=settings.worker.lease_s - 1,
            tmp_dir=tmp_dir,
            limits=ProgramLimits(
                settings.tools.cpu_s, settings.tools.memory_bytes, settings.tools.file_max_bytes
            ),
            store_wait_s=settings.runs.infrastructure_wait_s,
            path=settings.tools.path,
        )
    from app.k8s.executor import open_executor as open_cluster  # noqa: PLC0415 - a laptop needs none of it

    try:
        staging = open_staging(settings, workspaces)
    except StagingUnset as error:
        raise CannotRun(str(error) or "TOOL_EXECUTOR=kubernetes needs S3_BUCKET or TOOL_SYNC_URL") from error
    return open_cluster(settings, staging, clock, Random())  # noqa: S311 - jitter
