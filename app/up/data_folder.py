"""The data folder of `up`: who holds it, its token, and where clients find the server.

    lock      held while an `up` or a child of it lives; names the holder's process
    token     the generated admin token, mode 0600, never replaced
    up.json   URL, token and Redis URL of the running `up`, mode 0600, gone when it stops
    logs/     what the child processes print
    redis/    the embedded Redis, one folder for each engine and version

The lock is a `flock` whose file is inherited by the children: after `kill -9` of `up` the
folder is free once the last of them is gone, and no second Redis opens the same files.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import subprocess
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.core.private_files import private_folder
from tailrun.commands.serving import Serving, read_serving

ORPHANS_S = 10.0
"""Seconds to wait for the children of a killed `up`, which are about to die."""


class DataFolderRefused(Exception):
    """`up` cannot start; the message names the cause and what to do."""


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    temporary.replace(path)


class DataFolder:
    """The data folder, held by this process from `hold` to `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._fd: int | None = None

    @property
    def lock_fd(self) -> int:
        """The lock's file, for the children to inherit."""
        assert self._fd is not None, "hold() comes first"  # noqa: S101
        return self._fd

    def hold(self) -> None:
        """Take the folder, or raise `DataFolderRefused` with the holder's name."""
        try:
            private_folder(self.path)
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise DataFolderRefused(
                f"The data folder {self.path} can't be used ({error.strerror}). "
                "Choose another: DATA_DIR=/some/folder tailrun up",
            ) from error
        deadline = time.monotonic() + ORPHANS_S
        while not _locked(fd):
            holder = self.holder()
            if holder is not None or time.monotonic() > deadline:
                os.close(fd)
                raise DataFolderRefused(self._in_use(holder))
            time.sleep(0.05)
        self._fd = fd
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid(), "born": _born(os.getpid())}).encode(), 0)

    def holder(self) -> int | None:
        """Return the process that holds the folder: alive, and the very one that wrote the lock."""
        try:
            holder: dict[str, Any] = json.loads((self.path / "lock").read_bytes())
            pid, born = int(holder["pid"]), holder["born"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return pid if _born(pid) == born and not self._free() else None

    def token(self) -> str:
        """Return the generated token, made at the first call in the folder's life."""
        return self._made_once("token", lambda: secrets.token_urlsafe(32))

    def projects_key(self) -> str:
        """Return the key of what projects keep secret, made at the first call in the folder's life."""
        return self._made_once("projects.key", lambda: urlsafe_b64encode(secrets.token_bytes(32)).decode())

    def _made_once(self, name: str, make: Callable[[], str]) -> str:
        path = self.path / name
        try:
            known = path.read_text().strip()
        except FileNotFoundError:
            known = ""
        if not known:
            known = make()
            write_private(path, known + "\n")
        path.chmod(0o600)
        return known

    def announce(self, serving: Serving) -> None:
        """Tell clients where the server is."""
        write_private(self.path / "up.json", json.dumps(asdict(serving), indent=2) + "\n")

    def release(self) -> None:
        """Give the folder up."""
        if self._fd is not None:
            (self.path / "up.json").unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None

    def wait_free(self, timeout_s: float, meanwhile: Callable[[], object] = lambda: None) -> bool:
        """Wait until no process holds the folder; False if it took too long."""
        deadline = time.monotonic() + timeout_s
        while not self._free():
            if time.monotonic() > deadline:
                return False
            meanwhile()
            time.sleep(0.05)
        return True

    def _free(self) -> bool:
        try:
            fd = os.open(self.path / "lock", os.O_RDWR)
        except OSError:
            return True
        try:
            return _locked(fd)
        finally:
            os.close(fd)

    def _in_use(self, holder: int | None) -> str:
        serving = read_serving(self.path)
        where = f" at {serving.url}" if serving is not None else ""
        who = f"`tailrun up` is already running{where} (process {holder})" if holder else "something"
        return (
            f"The data folder {self.path} is in use: {who}. Stop that with `tailrun down`, "
            "or start a second one beside it: DATA_DIR=.tailrun-2 PORT=8081 tailrun up"
        )


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _born(pid: int) -> str | None:
    """Return when a process started, so that a reused number is not taken for it; None: no such process."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return stat.read_text().rpartition(")")[2].split()[19]
        except OSError:
            return None
    found = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None
