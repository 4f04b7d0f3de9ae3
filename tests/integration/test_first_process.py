"""`tailrun` as the first process of a container, which the kernel gives no default action for signals."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.servers import free_port
from support.stack import wait_for

ROOT = Path(__file__).resolve().parents[2]
FIRST = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")


def cannot() -> bool:
    if sys.platform != "linux":
        return True
    return subprocess.run([*FIRST, "true"], capture_output=True, check=False).returncode != 0


def catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) & 1 << (number - 1))


@pytest.mark.skipif(cannot(), reason="NOT TESTED: this machine lets nobody make a process namespace")
@pytest.mark.parametrize("command", ["api", "worker"])
def test_told_to_stop_while_it_starts_it_stops(command: str, tmp_path: Path) -> None:
    """Not only once it serves: a pod that goes at once would keep its node waiting for the grace period."""
    ports = {"PORT": str(free_port()), "WORKER_PORT": str(free_port()), "REDIS_URL": "redis://127.0.0.1:1/0"}
    env = {"PATH": "/usr/bin:/bin", "DATA_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), **ports}
    with subprocess.Popen([*FIRST, sys.executable, "-P", "-m", "app", command], env=env) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_for(lambda: children.read_text() != "", "the first process", 60)
        first = int(children.read_text())
        wait_for(lambda: catches(first, signal.SIGTERM), "it to hear signals", 60)
        subprocess.run(["kill", "-TERM", str(first)], check=True)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
