"""Folders and files that only this user reads, whatever the umask is.

What runs print, their files, their secrets and the database lie below DATA_DIR: the folder is 0700
and the database 0600 from the moment they exist. A database of an earlier release is tightened,
for it is certainly ours. A folder that was there before is left as it is, for it may be a home or
/tmp; whoever starts a process is told.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_SQLITE = ("", "-wal", "-shm")


def private_folder(path: Path) -> None:
    """Make a folder, with those above it that are missing: 0700, all of them.

    Raises:
        OSError: it can't be made.
    """
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def is_open_to_others(path: Path) -> bool:
    """Whether others get at a folder of this user's; one of another user is theirs to close."""
    with contextlib.suppress(FileNotFoundError):
        about = path.stat()
        return about.st_uid == os.geteuid() and bool(about.st_mode & _OTHERS)
    return False


def private_database(path: Path) -> None:
    """Make an SQLite file, empty, or tighten the one that is there: 0600; so its -wal and -shm become.

    Raises:
        OSError: it can't be made; not where its folder is missing, which SQLite will say.
    """
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        return
    for suffix in _SQLITE:
        each = path.with_name(path.name + suffix)
        if is_open_to_others(each):
            each.chmod(0o600)
