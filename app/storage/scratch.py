"""Temporary files that are cleaned up also after a killed process.

Each process has a folder of its own, and holds a lock in it for as long as it lives. The
kernel drops the lock however the process dies, so the next process that starts here can
tell what is abandoned, and removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Generator
from pathlib import Path

from app.core.private_files import private_folder

_ALIVE, _SWEEP = ".alive", "sweep"


class Scratch:
    """This process's folder below `root`; made at first use, removed by `close`. Blocking."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._mutex = threading.Lock()
        self._folder: Path | None = None
        self._alive = -1

    def folder(self) -> Path:
        """Return the folder; the first call also removes those of dead processes."""
        with self._mutex:
            if self._folder is None or not self._folder.is_dir():
                self._release()
                private_folder(self._root)
                with self.lock(_SWEEP):
                    self._sweep()
                    self._folder = Path(tempfile.mkdtemp(dir=self._root))
                    self._alive = _locked(self._folder / _ALIVE, wait=True)
            return self._folder

    @contextlib.contextmanager
    def lock(self, name: str) -> Generator[None]:
        """Hold a lock against all threads and processes that use the same root."""
        private_folder(self._root)
        fd = _locked(self._root / f"{name}.lock", wait=True)
        try:
            yield
        finally:
            os.close(fd)

    def close(self) -> None:
        with self._mutex:
            if self._folder is not None and self._folder.is_dir():
                purge(self._folder)
            self._release()

    def remove_root(self) -> None:
        """Remove the root if no process has a folder in it; one that makes its own just now may fail."""
        if not self._root.is_dir():
            return
        with contextlib.suppress(OSError), self.lock(_SWEEP):
            if [entry.name for entry in self._root.iterdir()] == [f"{_SWEEP}.lock"]:
                shutil.rmtree(self._root)

    def _release(self) -> None:
        if self._alive >= 0:
            os.close(self._alive)
        self._folder, self._alive = None, -1

    def _sweep(self) -> None:
        """Remove what dead processes left; the caller holds the lock under which folders are made."""
        for entry in list(self._root.iterdir()):
            # What can't be removed (a program still writes there) is the next process's work.
            with contextlib.suppress(OSError):
                if entry.is_dir() and not _is_alive(entry):
                    purge(entry)


def purge(folder: Path) -> None:
    """Remove a folder that no other process uses.

    Tools leave anything behind: links are removed, not followed; folders without permissions
    get them back; and folders nested deeper than a path can be long are moved up first.
    """
    folders = [folder]
    while folders:
        current = folders.pop()
        current.chmod(0o700)
        for entry in list(current.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                folders.append(_moved(entry, folder.parent / f"purge-{uuid.uuid4().hex}"))
            else:
                entry.unlink()
        current.rmdir()


def _moved(folder: Path, target: Path) -> Path:
    folder.chmod(0o700)  # a folder that may not be written can't be moved
    return folder.rename(target)


def _is_alive(folder: Path) -> bool:
    try:
        os.close(_locked(folder / _ALIVE, wait=False))
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _locked(path: Path, *, wait: bool) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if wait else 0), 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(fd)
        raise
    return fd
