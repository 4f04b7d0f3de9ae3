"""Limits of local programs are the kernel's, and a run that met one says which; nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from local_tools import wait_for
from support.agent_context import open_place

from app.execution.guard_client import ProgramLimits
from app.execution.process import LocalExecutor
from app.storage.scratch import Scratch
from tailrun.process.errors import ErrorCode

CASES = {
    "cpu": (ProgramLimits(cpu_s=1), "while True: pass", "1 s of CPU time (TOOL_CPU_S)"),
    "cpu, stubborn": (
        ProgramLimits(cpu_s=1),
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "1 s of CPU time (TOOL_CPU_S)",
    ),
    "memory": (
        ProgramLimits(memory_bytes=500_000_000),
        "x = bytearray(2_000_000_000)",
        "500000000 bytes of memory (TOOL_MEMORY_BYTES)",
    ),
    "file": (
        ProgramLimits(file_bytes=50_000),
        "open('big', 'wb').write(b'x' * 99_999)",
        "50000 bytes a file (TOOL_FILE_MAX_BYTES)",
    ),
    "file, by the signal": (
        ProgramLimits(file_bytes=50_000),
        "import os; os.execlp('bash', 'bash', '-c', 'head -c 99999 /dev/zero > big')",
        "50000 bytes a file (TOOL_FILE_MAX_BYTES)",
    ),
}
WORKER = """
import asyncio, sys
from pathlib import Path
from app.execution.executor import StopToken, ToolRun
from app.execution.process import LocalExecutor
from app.storage.local_workspace import LocalWorkspaces
from app.storage.scratch import Scratch
from app.storage.workspace import WorkspaceLimits

class Sink:
    async def __call__(self, lines):
        print(lines[0].content, flush=True)
    async def gap(self, lost, why): ...

root = Path(sys.argv[1])
workspaces = LocalWorkspaces(root / "ws", WorkspaceLimits(1000, 1000, 10))
executor = LocalExecutor(tmp_dir=Scratch(root / "tools").folder(), silence_s=6000)
script = 'echo x > $TMPDIR/left; echo $TMPDIR; sleep 6000'
tool = ToolRun("r1", 1, "s1", ("sh", "-c", script), workspaces.open("u", "r1"))
asyncio.run(executor.run(tool, Sink(), StopToken()))
"""


@pytest.mark.parametrize("case", list(CASES))
async def test_a_program_over_a_limit_says_which(tmp_path: Path, case: str) -> None:
    limits, source, said = CASES[case]
    async with open_place(tmp_path) as place:
        place.executor = LocalExecutor(tmp_dir=place.tmp, silence_s=60, grace_s=1, limits=limits)
        failure = await place.failure("code", language="python", source=source, args=[])
        assert (failure.code, failure.retried) == (ErrorCode.RESOURCE_LIMIT, False)
        assert said in failure.message


async def test_what_stays_below_its_limits_or_fails_otherwise_is_left_alone(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        limits = ProgramLimits(60, 4_000_000_000, 50_000)
        place.executor = LocalExecutor(tmp_dir=place.tmp, silence_s=60, grace_s=1, limits=limits)
        shown = await place.call("shell", command="ulimit -t; ulimit -v; ulimit -f; exit 3")
        assert shown.exit_code == 3
        assert place.log.text == ["60", "3906250", "48"]


def test_worker_and_guard_killed_at_once_leave_no_file_for_ever(tmp_path: Path) -> None:
    """The next worker removes what both could not; the program itself died with its guard."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout
    folder = Path(worker.stdout.readline().strip())
    assert (folder / "left").exists()
    tree = psutil.Process(worker.pid).children(recursive=True)
    worker.send_signal(19)
    for process in [*tree[:1], psutil.Process(worker.pid)]:
        process.kill()
    worker.wait()
    worker.stdout.close()
    wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in tree[:2]), within_s=60)
    assert folder.exists()
    scratch = Scratch(tmp_path / "tools")
    scratch.folder()
    assert not folder.exists()
    scratch.close()
    for process in tree:
        if process.is_running():
            process.kill()
