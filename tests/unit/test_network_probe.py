"""The program with which `verify.sh` looks for open networks: it finds one, and says so of each."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "verify.sh"


def test_the_probe_tells_open_from_closed() -> None:
    found = re.search(r"^PROBE='(.*?)'$", SCRIPT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found
    with socket.create_server(("127.0.0.1", 0)) as there, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        targets = [
            f"{name},127.0.0.1,{each.getsockname()[1]}" for name, each in (("one", there), ("two", taken))
        ]
        done = subprocess.run(
            [sys.executable, "-c", found[1], *targets], capture_output=True, text=True, check=True, timeout=60
        )
    assert done.stdout.splitlines()[1:] == ["open itself", "open one", "closed two"]
