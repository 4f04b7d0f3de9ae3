"""A fake cluster, and an executor on it; the API that pods fetch their files from is a real process."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fake_cluster.cluster import FakeCluster
from support.stack import Stack

sys.path.append(str(Path(__file__).parents[1] / "integration"))

from app.config import Settings
from app.execution.executor import ToolResult, ToolRun
from app.k8s.executor import KubernetesExecutor, open_executor
from app.storage.factory import open_staging, open_workspaces
from tailrun.process.lines import LineSink
from tailrun.process.stop import StopToken

IMAGE = "toolbox"


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster().start()
    yield fake
    fake.stop()


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An API without workers: it serves the staged files."""
    folder = tmp_path_factory.mktemp("api")
    stack = Stack(folder, f"sqlite:///{folder}/tailrun.db", workers=0)
    yield stack
    stack.close()


def settings_for(cluster: FakeCluster, folder: Path, data_dir: Path, api_url: str, **more: Any) -> Settings:
    kubeconfig = str(cluster.kubeconfig(folder))
    base: dict[str, Any] = {
        "tool_executor": "kubernetes",
        "kubeconfig": kubeconfig,
        "tool_namespace": "tools",
    }
    base |= {"tool_image": IMAGE, "tool_sync_url": api_url, "data_dir": data_dir, "cancel_grace_s": 1}
    return Settings(**(base | more))


class InPlace(KubernetesExecutor):
    """The executor, for tools whose files lie in one run's workspace."""

    workspaces: Any
    settings: Settings

    async def run(self, tool: ToolRun, sink: LineSink, stop: StopToken) -> ToolResult:
        workspace = self.workspaces.open("u", "r")
        return await super().run(replace(tool, workspace=workspace), sink, stop)


@pytest.fixture
def cwd(api: Stack) -> Iterator[Path]:
    folder = api.folder / "data/workspace/users/u/runs/r"
    folder.mkdir(parents=True)
    yield folder
    for path in folder.rglob("*"):
        path.unlink()
    folder.rmdir()


@pytest.fixture
async def executor(cluster: FakeCluster, api: Stack, tmp_path: Path) -> AsyncIterator[InPlace]:
    settings = settings_for(cluster, tmp_path, api.folder / "data", api.url)
    workspaces = open_workspaces(settings)
    plain = open_executor(
        settings, open_staging(settings, workspaces), lambda: time.time_ns() // 1000, Random(1)
    )
    executor = InPlace(plain._crew)
    executor.workspaces, executor.settings = workspaces, settings
    await executor.start()
    yield executor
    await executor.close()
    await workspaces.close()
