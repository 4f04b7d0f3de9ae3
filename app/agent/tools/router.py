"""The router: a step's tool name → the code that does it, and its errors in the run's words."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

from app.agent.tools.failures import failure_of
from app.agent.tools.files import delete_file, list_files, read_file, write_file
from app.agent.tools.interpreters import run_argv, run_code, run_shell
from app.agent.tools.program import RunLog, ToolContext, ToolOutcome
from app.agent.tools.task import TaskProgram, run_task
from app.core.errors import TailrunError
from app.core.models import Run, Step
from app.execution.executor import Executor, Resume
from app.plan.steps import ARGV, TASK
from app.storage.workspace import Workspace
from tailrun.process.stop import StopReason, StopToken

_PROGRAMS: dict[str, Callable[[ToolContext, Step, StopToken], Awaitable[ToolOutcome]]] = {
    "shell": run_shell,
    "code": run_code,
    ARGV: run_argv,
}
_FILE_TOOLS: dict[str, Callable[[ToolContext, Step], Coroutine[Any, Any, ToolOutcome]]] = {
    "file_write": write_file,
    "file_read": read_file,
    "file_delete": delete_file,
    "file_list": list_files,
}


def runs_program(step: Step) -> bool:
    """Whether the step starts a program; the other tools can be called again without harm."""
    return step.tool not in _FILE_TOOLS


class ToolRouter:
    """Runs the tools of one attempt; `task` is what the step of a typed task runs."""

    def __init__(
        self,
        workspace: Workspace,
        executor: Executor,
        run: Run,
        log: RunLog,
        task: TaskProgram | None = None,
    ) -> None:
        self._bench = ToolContext(run, workspace, executor, log)
        self._task = task

    @property
    def unsettled(self) -> bool:
        """Whether something waits for `settle`."""
        return self._bench.executor.reattaches and bool(self._bench.unsettled)

    def reattaches(self, step: Step) -> bool:
        """Whether the step's program outlives its worker, so that another one can continue it."""
        return self._bench.executor.reattaches and runs_program(step)

    async def settle(self) -> None:
        """Take note that the records of all steps so far are committed."""
        while self._bench.unsettled:
            await self._bench.executor.on_committed(self._bench.unsettled.pop())

    async def call(self, step: Step, stop: StopToken, again: Resume | None = None) -> ToolOutcome:
        """Run one step's tool to its end; a request to stop it shows in the outcome.

        Raises:
            RunFailure: the tool could not be started, or could not do its work.
            LostOwnership: another worker has the run.
        """
        bench = self._bench if again is None else replace(self._bench, again=again)
        try:
            if self._task is not None and step.tool == TASK:
                return await run_task(bench, step, stop, self._task)
            if step.tool in _PROGRAMS:
                return await _PROGRAMS[step.tool](bench, step, stop)
            return await _interruptible(_FILE_TOOLS[step.tool](self._bench, step), step.timeout_s, stop)
        except (TailrunError, OSError) as error:
            raise failure_of(error) from error


async def _interruptible(
    work: Coroutine[Any, Any, ToolOutcome],
    timeout_s: float | None,
    stop: StopToken,
) -> ToolOutcome:
    """Do `work` until it is done, its time is over or a stop is requested."""
    task = asyncio.create_task(work)
    try:
        await stop.race(task, timeout_s)
        if task.done():
            return task.result()
        return ToolOutcome(stopped=stop.reason or StopReason.TIMEOUT)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
