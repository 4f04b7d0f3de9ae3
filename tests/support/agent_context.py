"""A place to run an agent's steps in: real files, real programs, a log in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.agent.planner import plan
from app.agent.supervisor import supervise
from app.agent.tools import program
from app.agent.tools.router import ToolRouter
from app.core.models import Run, RunKind, RunStatus, Step
from app.execution.process import LocalExecutor
from app.plan.steps import parse_steps
from app.storage.local_workspace import LocalWorkspaces
from app.storage.workspace import Workspace, WorkspaceLimits
from support.recording_log import Recorder
from tailrun.process.errors import RunFailure
from tailrun.process.stop import StopToken


class Place:
    """One run's workspace, executor, log and router."""

    def __init__(self, folder: Path, spec: dict[str, Any] | None = None) -> None:
        self.tmp = folder / "tmp"
        self.workspaces = LocalWorkspaces(folder / "workspace", WorkspaceLimits(100_000, 150_000, 20))
        self.executor = LocalExecutor(tmp_dir=self.tmp, silence_s=60, grace_s=1)
        self.log = Recorder()
        self.stop = StopToken()
        self.run = Run(
            run_id="r1",
            user_id="u1",
            kind=RunKind.STEPS,
            status=RunStatus.RUNNING,
            spec=spec or {},
            created_at=0,
            attempt=1,
        )
        self.workspace: Workspace = self.workspaces.open("u1", "r1")

    @property
    def router(self) -> ToolRouter:
        return ToolRouter(self.workspace, self.executor, self.run, self.log)

    async def call(self, tool: str, timeout_s: float | None = None, **args: Any) -> program.ToolOutcome:
        """Run one step as the API would have accepted it."""
        [step] = parse_steps([{"tool": tool, "args": args, "timeout_s": timeout_s}])
        return await self.call_step(step)

    async def call_step(self, step: Step) -> program.ToolOutcome:
        return await self.router.call(step, self.stop)

    async def failure(self, tool: str, **args: Any) -> RunFailure:
        with pytest.raises(RunFailure) as failed:
            await self.call(tool, **args)
        return failed.value

    async def go(self) -> int | None:
        return await supervise(
            self.run,
            plan(self.run),
            done={},
            log=self.log,
            tools=self.router,
            stop=self.stop,
            clock=lambda: time.time_ns() // 1000,
        )

    async def content(self, path: str) -> bytes:
        return b"".join([piece async for piece in self.workspace.read(path)])

    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.tmp.iterdir()) if self.tmp.exists() else []


@asynccontextmanager
async def open_place(folder: Path, spec: dict[str, Any] | None = None) -> AsyncIterator[Place]:
    """Give out a place; nothing may be left in its temporary folder at the end."""
    place = Place(folder, spec)
    try:
        yield place
    finally:
        await place.executor.close()
        await place.workspaces.close()
    assert place.leftovers() == []
