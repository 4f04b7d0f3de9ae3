"""The free resources of a machine, or of a container on it: memory, disk, file handles.

Shared by the worker, which claims nothing while something lacks, and by the library, which
refuses to start. Limits of a container count (cgroup v2): there the host's free memory is not ours.
What a platform does not tell is not looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_KIB = 1024
_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Need:
    """The resources that have to be free before a run is claimed, in bytes and handles; 0: do not look."""

    memory: int
    disk: int
    fds: int


def lacks(need: Need, folder: Path, root: Path = _ROOT) -> Iterator[tuple[str, str]]:
    """Yield what there is too little of where runs write into `folder`: its name, and a text for users."""
    free = (
        ("memory", "bytes", need.memory, lambda: free_memory(root)),
        ("disk", "bytes", need.disk, lambda: free_disk(folder)),
        ("fds", "file handles", need.fds, lambda: free_fds(root)),
    )
    for name, unit, least, measure in free:
        left = measure() if least else None
        if left is not None and left < least:
            yield name, f"{name}: {left} {unit} are free, {least} are needed"


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
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return None
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
