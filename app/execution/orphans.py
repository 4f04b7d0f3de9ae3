"""What is done where the guard itself was killed: by the kernel short of memory, or by somebody.

The tool's main program dies with its guard, but nobody answers for its descendants any more. They
are found by what they inherited: the tool's own temporary folder in their environment, a name
that no other program has. A program that emptied its environment and left the process group
escapes; only a guard that lives sees that one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

_GIVE_UP_S = 2.0


def kill_orphans(group: int | None, tmp: Path) -> None:
    """Kill the process group and all that have `tmp` as TMPDIR, then remove it; blocks for a moment."""
    if group is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + _GIVE_UP_S
    while (left := _having(tmp)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    shutil.rmtree(tmp, ignore_errors=True)


def _having(tmp: Path) -> list[int]:
    """Find the processes with this TMPDIR; none where there is no /proc. The dead have no environment."""
    mark = b"TMPDIR=" + os.fsencode(tmp)
    found = list[int]()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found
