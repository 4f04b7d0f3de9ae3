"""Monitors one tool run in the cluster, from its Job to its result.

    place the Job ──> wait for its pod, telling what it waits for ──> follow its log
        ──> its container's exit code ──> its files back ──> the result

One loop: something changed (the watch, the log's end, a request to stop, a time limit), look at
everything, act. DRAIN and LOST leave the Job to the next worker; CANCEL and TIMEOUT delete it, and
follow it to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import structlog

from app.core.errors import LostOwnership, StorageError
from app.execution.executor import ToolResult, ToolRun
from app.k8s import spec
from app.k8s.client import Absent, ClusterAway, ClusterError
from app.k8s.follower import PodLogFollower
from app.k8s.frames import Cursor, Exit, FrameReader, Gap, Item, News, RawLines
from app.k8s.launcher import JobContext, JobLauncher, Stages
from app.k8s.pod_state import PodVerdict, State, finished, judge, silent_node
from app.storage.staging import StagingFailure, UploadRefused
from tailrun.process.aio import run_to_completion
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Level, Line, LineSink, Stream
from tailrun.process.monitor import SWEPT
from tailrun.process.stop import StopReason, StopToken, Usage

_LEFT = frozenset({StopReason.DRAIN, StopReason.LOST})
_LAST_LINES_S = 1.0
_SILENT_LOOKS = 5
"""So many looks in a row without a line end the reading after the container's end; a long pause is one."""
_STOP_MARGIN_S = 3.0
_HURRIED_UPLOAD_S = 1.5
_KILL_S = 2.0
_AGAIN_S = 0.5
_START_FAILED, _NOT_READY = frozenset({126, 127}), 125
_TOLD_EVENTS = 20
_WORTH_TELLING = frozenset({"Pulling", "TriggeredScaleUp"})

log = structlog.get_logger()


class JobMonitor:
    """One tool run; `run` once."""

    def __init__(self, crew: JobContext, tool: ToolRun, sink: LineSink, stop: StopToken) -> None:
        self._crew, self._tool, self._sink, self._stop = crew, tool, sink, stop
        self._profile = crew.profiles.of(tool.tool, tool.wants)
        self._limit_s = spec.limit_s(tool, self._profile)
        self._placement = JobLauncher(crew, tool, self._profile)
        self.name = self._placement.name
        self._view = crew.watch.view(self.name)
        self._wake = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._stages = Stages(crew.clock)
        self._told: set[str] = set()
        self._silent_node = ""
        self._why_failed = ""
        self._report: dict[str, Any] = {}
        self._stopping: StopReason | None = None
        self._stop_by = float("inf")

    async def run(self) -> ToolResult:
        """See the tool run through; see `app.execution.executor.Executor`."""
        self._view.listeners.add(self._wake.set)
        hearing = asyncio.create_task(self._hear())
        try:
            return await self._attend()
        except (LostOwnership, RunFailure):
            raise
        except BaseException:
            if self._stop.reason not in _LEFT:
                await self._kill()
            raise
        finally:
            hearing.cancel()
            self._view.listeners.discard(self._wake.set)
            self._crew.watch.forget(self.name)

    async def _hear(self) -> None:
        """Wake up for a request to stop; LOST may come after another one."""
        await self._stop.wait()
        self._wake.set()
        await self._stop.lost()
        self._wake.set()

    async def _attend(self) -> ToolResult:
        if self._stop.reason in _LEFT:
            return ToolResult(None, stopped=self._stop.reason, usage=None)
        if self._stop.reason is None or self._tool.attempt > 1:
            job = await self._placement.place()
            self._stages.created(job, found=self._placement.found)
            if self._placement.found:
                await self._say(Level.INFO, f"re-attached to Job {self.name}")
        verdict = await self._until_started()
        if verdict is None or self._stop.reason in _LEFT:
            return ToolResult(None, stopped=self._stop.reason, usage=None)
        if verdict.state in {State.RUNNING, State.ENDED}:
            left = await self._until_ended()
            if left is not None:
                return ToolResult(None, stopped=left, usage=None)
            verdict = self._judge()
        self._stages.ended()
        return await self._result(verdict)

    # -- until it runs ------------------------------------------------------------------

    async def _until_started(self) -> PodVerdict | None:
        """Wait until the program has begun, or never will. None: stopped before it had begun."""
        since = {State.PLACING: self._clock()}
        patience = {
            State.PLACING: self._crew.terms.kubernetes.schedule_s,
            State.STARTING: self._crew.terms.kubernetes.start_s,
        }
        while True:
            self._wake.clear()
            if self._stop.reason in _LEFT:
                return None
            if self._stop.reason is not None:
                await self._delete()
                return None
            verdict = await self._judged()
            self._stages.look(self._view)
            await self._tell()
            if verdict.state not in patience:
                return verdict
            until = since.setdefault(verdict.state, self._clock()) + patience[verdict.state]
            if self._clock() >= until:
                raise verdict.failure()
            await self._pause(until)

    async def _tell(self) -> None:
        """Write the pod's events into the run's log, each once."""
        await self._tell_of_node()
        for event in tuple(self._view.events):
            if event.get("type") != "Warning" and event.get("reason") not in _WORTH_TELLING:
                continue
            if not self._is_our_order(event):
                level = Level.WARNING if event.get("type") == "Warning" else Level.INFO
                await self._tell_once(f"{event.get('reason')}: {event.get('message')}", level)

    def _is_our_order(self, event: dict[str, Any]) -> bool:
        """Whether an event is of Secrets that we make right behind the Job: nothing is amiss."""
        message = str(event.get("message"))
        ours = spec.files_secret(self.name) in message or spec.env_secret(self.name) in message
        return ours and ("not found" in message or "failed to sync secret" in message)

    async def _tell_of_node(self) -> None:
        """Say when the cluster has lost touch with the pod's node, and when it is back."""
        node = silent_node(self._view.pod)
        if node and not self._silent_node:
            text = f"its node {node} does not answer; waiting for it (at most {spec.NODE_LOST_S} s)"
            await self._say(Level.WARNING, text)
        elif self._silent_node and not node and not self._over():
            await self._say(Level.INFO, f"its node {self._silent_node} answers again")
        self._silent_node = node

    async def _tell_once(self, text: str, level: Level = Level.WARNING) -> None:
        if text not in self._told and len(self._told) < _TOLD_EVENTS:
            self._told.add(text)
            await self._say(level, text)

    # -- while it runs ------------------------------------------------------------------

    async def _until_ended(self) -> StopReason | None:
        """Follow the log until the container has ended and all is read. DRAIN or LOST: it runs on."""
        step_run, cursor = self._tool.step_run, Cursor.parse(self._tool.cursor, self._tool.step_run)
        reader = (FrameReader if self._profile.wrapped else RawLines)(step_run, cursor)
        path = f"{self._crew.terms.core}/pods/{self._pod_name()}/log"
        follower = PodLogFollower(self._crew.cluster, path, reader, self._over)
        following = asyncio.create_task(follower.run(self._deliver))
        following.add_done_callback(lambda _: self._wake.set())
        timeout_at = self._timeout_at()
        try:
            while True:
                self._wake.clear()
                if self._stop.reason in _LEFT:
                    return self._stop.reason
                self._stages.look(self._view)
                await self._tell()
                if self._stopping is None and (self._stop.reason or self._clock() >= timeout_at):
                    await self._begin_stop()
                if following.done():
                    following.result()
                over = self._over()
                if over:
                    return await self._last_lines(follower, following)
                if self._clock() >= self._stop_by:
                    return None
                await self._pause(min(self._stop_by, timeout_at if self._stopping is None else float("inf")))
        finally:
            await _end(following)

    async def _last_lines(self, follower: PodLogFollower, task: asyncio.Task[None]) -> StopReason | None:
        """Read on as long as lines come or wait for the sink; a connection that just hangs is given up."""
        silent = 0
        while silent < _SILENT_LOOKS:
            count = follower.batches
            await asyncio.wait((task,), timeout=_LAST_LINES_S)
            if self._stop.reason in _LEFT:
                return self._stop.reason
            if task.done():
                task.result()
                return None
            silent = 0 if follower.delivering or follower.batches != count else silent + 1
        await _end(task)
        await self._sink.gap(0, "the end of the pod's log could not be read")
        return None

    async def _begin_stop(self) -> None:
        self._stopping = self._stop.reason or StopReason.TIMEOUT
        self._stop_by = self._clock() + self._crew.terms.grace_s + _STOP_MARGIN_S
        await self._delete()

    def _timeout_at(self) -> float:
        """When the program's own time is over; the wrapper knows better, and gets a margin."""
        if self._limit_s is None:
            return float("inf")
        margin = self._crew.terms.grace_s + _STOP_MARGIN_S if self._profile.wrapped else 0
        return self._clock() + self._limit_s + margin

    async def _deliver(self, items: list[Item]) -> None:
        lines: list[Line] = []
        for item in items:
            match item:
                case Line():
                    lines.append(item)
                case Gap():
                    lines = await self._flush(lines)
                    what = f"{item.lost} frames" if item.lost else "some lines"
                    await self._sink.gap(
                        item.lost, f"{what} of the pod's log were lost before they were read"
                    )
                case News():
                    if item.kind == "synced":
                        self._stages.synced()
                    elif item.kind == "failed":
                        self._why_failed = item.message
                    elif item.kind == "stopped":
                        lines.append(Line(Stream.SYSTEM, f"{SWEPT}: {item.message}", Level.WARNING))
                case Exit():
                    self._report = item.report
        await self._flush(lines)

    async def _flush(self, lines: Sequence[Line]) -> list[Line]:
        if lines:
            self._stages.printed(len(lines))
            await self._sink(lines)
        return []

    # -- the end ------------------------------------------------------------------------

    async def _result(self, verdict: PodVerdict) -> ToolResult:
        stopped = self._stopping
        if stopped is None and self._report.get("timeout") is True:
            stopped = StopReason.TIMEOUT
        self._check_start(verdict)
        if stopped is None and verdict.state is State.FAILED:
            with contextlib.suppress(StagingFailure, StorageError):
                await self._collect(_HURRIED_UPLOAD_S)
            raise verdict.failure()
        collected = await self._files_back(stopped)
        if collected is not None and collected.failure is not None:
            raise collected.failure
        code = verdict.exit_code
        return ToolResult(
            code,
            self._report.get("signal") if self._report.get("code") == code else None,
            stopped,
            self._usage(),
            collected.changed if collected else (),
            collected.skipped if collected else (),
            self._stages.times,
        )

    def _check_start(self, verdict: PodVerdict) -> None:
        """The wrapper could not start the program: that is no exit code of the program's."""
        if not self._why_failed or verdict.state is not State.ENDED or self._stopping is not None:
            return
        if verdict.exit_code in _START_FAILED:
            text = f"The program could not be started: {self._why_failed}"
            raise RunFailure(ErrorCode.START_FAILED, text, retried=False)
        if verdict.exit_code == _NOT_READY:
            text = f"the run's files did not reach the pod: {self._why_failed}"
            raise RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, text)

    async def _files_back(self, stopped: StopReason | None) -> Any:
        """Take the files back. Of a stopped program that is tried for a moment, of another it must be."""
        hurry = stopped in {StopReason.CANCEL, StopReason.TIMEOUT} and self._stop.reason is not None
        try:
            within_s = _HURRIED_UPLOAD_S if hurry else self._crew.terms.kubernetes.upload_s
            return await self._collect(within_s, hurry=hurry)
        except StagingFailure as error:
            if stopped is None:
                raise _lost_files(error) from error
            await self._say(Level.WARNING, f"what it changed in its files is lost: {error}")
            return None

    async def _collect(self, within_s: float, *, hurry: bool = True) -> Any:
        """Wait for the side-car's end, and take in what it has sent. In a `hurry` no store is waited for."""
        until = self._clock() + within_s
        while not (finished(self._view.pod, spec.SYNC) or self._view.pod_gone) and self._clock() < until:
            self._wake.clear()
            await self._pause(until)
        until = self._clock() + max(within_s, 0 if hurry else self._crew.terms.store_wait_s)
        while True:
            if self._stop.reason is StopReason.LOST:
                raise LostOwnership("the run was taken over while its files came back")
            try:
                return await self._crew.staging.collect(self.name, self._tool.workspace)
            except StorageError as error:  # the program has run: its files are worth some patience
                if self._clock() >= until or (self._stop.stopped and not hurry):
                    raise
                await self._tell_once(f"waiting for its files: {error}")
                await asyncio.sleep(_AGAIN_S)

    def _usage(self) -> Usage:
        report = self._report
        with contextlib.suppress(ArithmeticError, TypeError, ValueError):
            cpu_s, rss = float(report.get("cpu_s", 0)), int(report.get("max_rss", 0))
            return Usage(cpu_s, self._stages.wall_s, rss)
        return Usage(wall_s=self._stages.wall_s)

    # -- small things -------------------------------------------------------------------

    def _judge(self) -> PodVerdict:
        view = self._view
        return judge(view.job, view.pod, view.events, pod_gone=view.pod_gone)

    async def _judged(self) -> PodVerdict:
        """Return the verdict; a Job that the watch lacks is read once more, for the watch may be late."""
        verdict = self._judge()
        if self._view.job_gone and verdict.state in {State.PLACING, State.STARTING}:
            try:
                self._view.job = await self._crew.cluster.get(f"{self._crew.terms.jobs}/{self.name}")
                self._view.job_gone = False
            except Absent:
                return PodVerdict(State.FAILED, ErrorCode.WORKER_LOST, "its Job was deleted")
            except (ClusterAway, ClusterError):
                return verdict
        return verdict

    def _over(self) -> bool:
        """Whether the program's container runs no more, however it ended."""
        return self._judge().state in {State.ENDED, State.FAILED} or self._view.pod_gone

    def _pod_name(self) -> str:
        assert self._view.pod is not None  # noqa: S101 - only a pod can run
        return str(self._view.pod["metadata"]["name"])

    async def _say(self, level: Level, text: str) -> None:
        await self._sink([Line(Stream.SYSTEM, text, level)])

    async def _delete(self) -> None:
        with contextlib.suppress(ClusterAway, ClusterError):  # the reaper comes by
            await self._crew.cluster.delete(f"{self._crew.terms.jobs}/{self.name}", patience_s=_KILL_S)

    async def _kill(self) -> None:
        """Delete the Job and wait until its program has ended, also when cancelled."""
        await run_to_completion(self._kill_now())

    async def _kill_now(self) -> None:
        await self._delete()
        until = self._clock() + self._crew.terms.grace_s + _KILL_S
        while self._view.pod is not None and not self._over() and self._clock() < until:
            self._wake.clear()
            await self._pause(until)

    async def _pause(self, until: float) -> None:
        """Wait for a change, not longer than `until`."""
        seconds = None if until == float("inf") else max(0.0, until - self._clock())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()


def _lost_files(error: StagingFailure) -> RunFailure:
    """What was sent and refused is the program's own work; what did not get through is the way's."""
    text = f"its files did not come back: {error}"
    if isinstance(error, UploadRefused):
        return RunFailure(ErrorCode.RESOURCE_LIMIT, text, retried=False)
    return RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, text, away=True)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
