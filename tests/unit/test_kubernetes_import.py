"""The library for Kubernetes is large: only a worker that runs tools on a cluster loads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKER = """
import sys
from pathlib import Path
import app.worker.main
from app.config import Settings
from app.execution.executor import CannotRun
from app.storage.factory import open_workspaces
from app.worker.resources import open_executor

settings = Settings()
try:
    open_executor(settings, open_workspaces(settings), Path("."), lambda: 0)
except CannotRun:
    print("cannot run")
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"kubernetes", "aiohttp"}))
"""


@pytest.mark.parametrize(("executor", "loaded"), [("local", ""), ("kubernetes", "aiohttp kubernetes")])
def test_only_a_worker_of_a_cluster_imports_kubernetes(tmp_path: Path, executor: str, loaded: str) -> None:
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("KUBE")},
        "PYTHONPATH": str(ROOT),
        "TOOL_EXECUTOR": executor,
        "TOOL_IMAGE": "toolbox",
        "TOOL_SYNC_URL": "http://127.0.0.1:1",
    }
    done = subprocess.run(
        [sys.executable, "-c", WORKER], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == loaded


def test_neither_the_api_nor_the_commands_import_kubernetes(tmp_path: Path) -> None:
    script = "import sys, app.main, tailrun.cli, app.up.stack; sys.exit('kubernetes' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", script], env=env, cwd=tmp_path, check=False).returncode == 0
