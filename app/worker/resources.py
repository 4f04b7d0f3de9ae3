"""Whether this machine has enough left for another run: memory, disk, file handles.

A worker that lacks one claims nothing, so that a run waits or goes elsewhere instead of failing
here. Limits of a container count (cgroup v2): there the host's free memory is not ours.
"""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from app.config import Settings
from app.telemetry import LACKS

FRESH_S = 1.0
_KIB = 1024
_ROOT = Path("/")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Need:
    """What has to be free before a run is claimed, in bytes and handles; 0: do not look."""

    memory: int
    disk: int
    fds: int


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
        need = Need(settings.min_free_memory_bytes, settings.min_free_disk_bytes, settings.min_free_fds)
        return cls(need, settings.tmp_dir)

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
        free = (
            ("memory", "bytes", self._need.memory, lambda: free_memory(self._root)),
            ("disk", "bytes", self._need.disk, lambda: free_disk(self._folder)),
            ("fds", "file handles", self._need.fds, lambda: free_fds(self._root)),
        )
        for name, unit, least, measure in free:
            left = measure() if least else None
            lacking = left is not None and left < least
            LACKS.labels(name).set(lacking)
            if lacking:
                yield f"{name}: {left} {unit} are free, {least} are needed (MIN_FREE_{_SETTING[name]})"


_SETTING = {"memory": "MEMORY_BYTES", "disk": "DISK_BYTES", "fds": "FDS"}


def free_memory(root: Path = _ROOT) -> int | None:
    """Return the bytes that can be had without swapping, in a container at most its own; None: unknown."""
    found = [free for free in (_machines_memory(root), *_groups_memory(root)) if free is not None]
    return min(found, default=None)


def free_disk(folder: Path) -> int | None:
    """Return the bytes that an ordinary user may still write where `folder` is or will be."""
    for place in (folder, *folder.parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def free_fds(root: Path = _ROOT) -> int | None:
    """Return how many more files this process may open; None: unknown."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    for folder in ("proc/self/fd", "dev/fd"):
        with suppress(OSError):
            return max(0, limit - len(os.listdir(root / folder)))  # noqa: PTH208 - an iterator would be slower
    return None


def _machines_memory(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * _KIB
    return None


def _groups_memory(root: Path) -> Iterator[int]:
    """Yield what is left of the limit of our control group and of each one around it."""
    top = root / "sys/fs/cgroup"
    ours = [line[3:] for line in _read(root / "proc/self/cgroup").splitlines() if line.startswith("0::")]
    group = top / ours[0].lstrip("/") if ours and ".." not in ours[0] else top
    for place in (group, *group.parents):
        limit, used = _read(place / "memory.max").strip(), _read(place / "memory.current").strip()
        if limit.isdecimal() and used.isdecimal():
            yield int(limit) - int(used) + _reclaimable(place)
        if place == top:
            return


def _reclaimable(group: Path) -> int:
    """Return the bytes of files that the kernel keeps in memory but would give up at once."""
    for line in _read(group / "memory.stat").splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
