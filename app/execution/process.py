"""Runs tools as processes of this machine, each under a guard of its own.

`LocalExecutor` is the executor of a laptop and of a worker without a cluster. What holds a tool
together here: the guard (`guard.py`) kills every descendant, `GuardClient` is the connection to it,
the pump moves the output, and this module decides when to stop, when it is over and how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from app.core.errors import LostOwnership, StorageError, TailrunError
from app.core.models import ResourceRequest
from app.core.private_files import private_folder
from app.execution.environment import Folders, ShortNames, build_env, search_path, source_file
from app.execution.executor import ToolResult, ToolRun
from app.execution.guard_client import (
    NO_LIMITS,
    GuardClient,
    LimitWatch,
    ProgramLimits,
    Request,
    kill_orphans,
)
from app.storage.workspace import FileInfo
from tailrun.process import errors, guard
from tailrun.process.aio import run_to_completion
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Level, Line, LineSink, Stream
from tailrun.process.monitor import ProcessMonitor
from tailrun.process.stop import ProcessResult, StopReason, StopToken

_AGAIN_S = 1.0
"""Seconds between two tries to keep the files of a program that has ended."""


class LocalExecutor:
    """Implements `app.execution.executor.Executor`. Times in seconds.

    Without a `heartbeat` for `silence_s` every tool is killed. Each has a temporary folder below
    `tmp_dir`, which is gone when the tool is. `limits` hold for each process of a tool. A store that
    is away when a tool has ended is waited for: what the tool has done is not to be done again.
    `path`: where programs are found, instead of where the worker finds them.
    """

    reattaches = False

    def __init__(
        self,
        *,
        tmp_dir: Path,
        silence_s: float = 4,
        grace_s: float = 5,
        limits: ProgramLimits = NO_LIMITS,
        store_wait_s: float = 300,
        path: str = "",
    ) -> None:
        self._tmp_dir = tmp_dir
        self._silence_s = silence_s
        self._grace_s = grace_s
        self._limits = limits
        self._store_wait_s = store_wait_s
        self._path = search_path(path)
        self._short_names = ShortNames()
        self._running: dict[asyncio.Task[ToolResult], GuardClient | None] = {}
        self._closed = False

    async def start(self) -> None:
        """Processes can be started at any time."""

    async def run(self, tool: ToolRun, sink: LineSink, stop: StopToken) -> ToolResult:
        """Run `tool` to the end of its last descendant, also when the caller is cancelled."""
        if self._closed:
            raise RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, "The worker is shutting down.")
        task = asyncio.create_task(self._run(tool, sink, stop))
        self._running[task] = None
        task.add_done_callback(self._running.pop)
        return await run_to_completion(task, task.cancel)

    def has_program(self, program: str, wants: ResourceRequest) -> bool:
        """Whether this machine has a program of this name where tools look."""
        return shutil.which(program, path=self._path) is not None

    async def on_committed(self, tool: ToolRun) -> None:
        """Nothing of a process is left when its result is there."""

    def heartbeat(self) -> None:
        """Tell every guard that the worker still owns its runs; any thread, never blocks."""
        for guarded in tuple(self._running.values()):
            if guarded is not None:
                guarded.heartbeat()

    async def close(self) -> None:
        """Kill what still runs and wait for its end; later runs are refused."""
        self._closed = True
        for guarded in self._running.values():
            if guarded is not None:
                guarded.say(guard.KILL)
        if self._running:
            await asyncio.wait(self._running)
        self._short_names.close()

    async def _run(self, tool: ToolRun, sink: LineSink, stop: StopToken) -> ToolResult:
        """Run `tool` in a checkout; what it changed is written back, unless the worker lost the run."""
        if tool.wants:
            raise RunFailure(
                ErrorCode.START_FAILED,
                "This worker runs programs as local processes, which have no image, cpu, memory or network "
                "of their own: leave these fields out, or use TOOL_EXECUTOR=kubernetes.",
                retried=False,
            )
        watch = LimitWatch(self._limits, sink) if self._limits else None
        try:
            async with tool.workspace.checkout(StoreWait(sink, stop, self._store_wait_s)) as checkout:
                result = await self._run_in(checkout.path, tool, watch or sink, stop)
                _unless_lost(result)
        except _Lost as lost:
            return _of_tool(lost.result)
        if watch is not None and (failure := watch.failure(result)) is not None:
            raise failure
        return _of_tool(result, checkout.changed, checkout.skipped)

    async def _run_in(self, cwd: Path, tool: ToolRun, sink: LineSink, stop: StopToken) -> ProcessResult:
        if self._closed:
            raise RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, "The worker is shutting down.")
        tmp = self._tmp_dir / f"tool-{secrets.token_hex(6)}"
        with source_file(self._tmp_dir, tool.source) as source, self._short_names.of(cwd, tmp) as folders:
            request = self._request(tool, cwd, tmp, folders, source)
            return await self._attend(request, tool, sink, stop)

    async def _attend(
        self, request: Request, tool: ToolRun, sink: LineSink, stop: StopToken
    ) -> ProcessResult:
        guarded = await self._start(request, f"{tool.run_id}/{tool.step_id}")
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine of one
        self._running[task] = guarded
        try:
            return await ProcessMonitor(guarded, request, sink, stop).run(tool.timeout_s)
        finally:
            await guarded.close()
            if "done" not in guarded.report and "failed" not in guarded.report:
                await asyncio.to_thread(kill_orphans, guarded.pid, request)

    def _request(self, tool: ToolRun, cwd: Path, tmp: Path, folders: Folders, source: str) -> Request:
        argv = tool.command(source, str(cwd))
        try:
            env = build_env(tool, cwd, folders, self._path)
        except TailrunError as error:
            raise RunFailure(ErrorCode.START_FAILED, error.message, retried=False) from None
        if any("\0" in arg for arg in argv):
            raise RunFailure(ErrorCode.START_FAILED, "An argument holds a NUL character.", retried=False)
        there = cwd if tool.cwd is None else Path(tool.cwd)
        return Request(argv, there, env, tmp, self._silence_s, self._grace_s, self._limits)

    async def _start(self, request: Request, name: str) -> GuardClient:
        """Start the guard in a thread: a fork takes milliseconds that the loop is needed in."""
        starting = asyncio.ensure_future(asyncio.to_thread(self._start_now, request, name))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            with contextlib.suppress(RunFailure):
                await (await starting).close()
            raise

    def _start_now(self, request: Request, name: str) -> GuardClient:
        try:
            private_folder(self._tmp_dir)
            return GuardClient.start(request, name)
        except OSError as error:
            raise errors.of_guard(error) from error
        except UnicodeEncodeError:
            text = "An argument or a variable holds a lone surrogate, which no program can be given."
            raise RunFailure(ErrorCode.START_FAILED, text, retried=False) from None


class StoreWait:
    """A store that is away when a program has ended: its files are worth waiting for.

    The program has done its work; if its files were given up at once, another attempt would do it again.
    Implements `app.storage.workspace.Patience`: for `limit_s` in all, until a stop is requested.
    """

    def __init__(self, sink: LineSink, stop: StopToken, limit_s: float) -> None:
        self._sink, self._stop, self._limit_s = sink, stop, limit_s
        self._until: float | None = None

    async def __call__(self, error: StorageError, /) -> bool:
        """Wait a moment; False once it has taken too long, or the run is to stop.

        Raises:
            LostOwnership: the run was taken over meanwhile: its files belong to another attempt.
        """
        clock = asyncio.get_running_loop().time
        if self._until is None:
            self._until = clock() + self._limit_s
            text = f"waiting to keep its files, for at most {self._limit_s:g} s: {error}"
            await self._sink([Line(Stream.SYSTEM, text, Level.WARNING)])
        if not self._stop.stopped and clock() < self._until:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _AGAIN_S)
        if self._stop.reason is StopReason.LOST:
            raise LostOwnership("the run was taken over while its files were to be kept")
        return not self._stop.stopped and clock() < self._until


class _Lost(LostOwnership):
    """Leaves a checkout without writing anything back."""

    def __init__(self, result: ProcessResult) -> None:
        super().__init__("the run was taken over while its program ran")
        self.result = result


def _of_tool(
    ended: ProcessResult, changed: Sequence[FileInfo] = (), skipped: Sequence[str] = ()
) -> ToolResult:
    return ToolResult(
        ended.exit_code, ended.signal, ended.stopped, ended.usage, tuple(changed), tuple(skipped)
    )


def _unless_lost(result: ProcessResult) -> None:
    if result.stopped is StopReason.LOST:
        raise _Lost(result)
