"""The life of one attempt: open the stream, work, write the end, release the entry.

Whatever happens inside, an attempt ends in exactly one of these ways: it succeeded, failed
for good, failed and comes back, was given back because the worker goes, or was lost to
another owner. Only the last writes nothing.

How an attempt's end becomes the run's next state. Pure, but for the dice that it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from app.agent.loop import Agent, AgentBench, within_a_row
from app.agent.model_turn import ModelPause
from app.agent.output import ToolOutput
from app.agent.planner import AGENT, is_agent, plan
from app.agent.replay import RecordedRun, ReplayRows
from app.agent.rows import AgentRows, AgentStores
from app.agent.supervisor import Drained, supervise
from app.agent.tool_calls import Parked
from app.agent.tools.failures import failure_of, named
from app.agent.tools.router import ToolRouter
from app.agent.tools.task import TaskProgram, prepare
from app.config import Settings
from app.core.clock import format_ts
from app.core.errors import LogBroken, LostOwnership, StorageError, TailrunError
from app.core.events import EventType
from app.core.models import Fence, Run, RunKind, RunStatus, StepRecord
from app.core.periodic import Backoff
from app.core.private_files import private_folder
from app.core.telemetry import ATTEMPTS, FAILURES, MASK_LOG, RETRIES, RUN_SECONDS, RUN_WAIT_SECONDS
from app.db.run_store import Outcome, RunStore, Waits
from app.execution.executor import Executor
from app.execution.program_slots import ProgramSlots
from app.llm.pool import ModelPool
from app.plan.projects import DEFAULT, folder_name
from app.plan.task_types import TaskTypes
from app.plan.transcript import Recording, recording
from app.plan.transcript_in import parse
from app.redis.publisher import Publisher, Tail
from app.storage.workspace import Workspace, Workspaces
from app.stream.writer import LogWriter
from app.worker.attempts import Attempt
from app.worker.job_queue import JobQueue
from app.worker.project_source import ProjectSource, Secrets
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Level
from tailrun.process.stop import StopReason, StopToken

_STOP_MARGIN_S = 5.0
_BREAK_OFF_S = 3.0
_INFRASTRUCTURE = frozenset(
    {ErrorCode.EXECUTOR_UNAVAILABLE, ErrorCode.WORKER_LOST, ErrorCode.EVICTED, ErrorCode.NO_MODEL}
)
_WAITING = "waiting, without counting a try, for at most {1:.0f} s more ({2}): {0}"
_ALONE = "{} workers died while they had this run; nothing else runs beside it now"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AttemptContext:
    """The dependencies of every attempt of a worker."""

    worker_id: str
    runs: RunStore
    queue: JobQueue
    publisher: Publisher
    tail: Tail
    workspaces: Workspaces
    executor: Executor
    clock: Callable[[], int]
    backoff: Backoff
    patience: Backoff
    """Between two looks at infrastructure that is away."""
    secrets: Secrets
    task_types: TaskTypes
    projects: ProjectSource
    programs: ProgramSlots
    models: ModelPool
    agents: AgentStores
    settings: Settings


class JobProcessor:
    """Sees one attempt through."""

    def __init__(self, bench: AttemptContext, attempt: Attempt) -> None:
        self._bench, self._attempt = bench, attempt
        self._run: Run = attempt.run
        self._stop: StopToken = attempt.stop
        self._fence = Fence(attempt.run.run_id, attempt.run.attempt, bench.worker_id)
        self._writer = LogWriter(
            attempt.run,
            self._fence,
            publisher=bench.publisher,
            tail=bench.tail,
            runs=bench.runs,
            clock=bench.clock,
            settings=bench.settings.log,
            masker=bench.secrets.shared,
            on_cancel=lambda: self._stop.stop(StopReason.CANCEL),
            on_lost=lambda: self._stop.stop(StopReason.LOST),
        )

    async def process(self) -> None:
        """Work on the run until one of the five ends is written. Never raises."""
        started = asyncio.get_running_loop().time()
        MASK_LOG.set(self._writer.hide)
        log.info("run started", **self._about())
        if self._run.attempt == 1 and self._run.queued_at is not None:
            since = max(self._run.queued_at, self._run.run_at or 0)
            RUN_WAIT_SECONDS.observe(max(0, self._bench.clock() - since) / 1_000_000)
        try:
            self._writer.mask_with(await self._bench.secrets.masker(self._run))
            await self._writer.open()
            result = self._attempt.failure or await self._try()
            await self._end(result)
        except LostOwnership:
            ATTEMPTS.labels("lost").inc()
            log.warning("run lost to another owner", **self._about())
        except Exception:
            log.exception("attempt broke off; the run is taken over later", **self._about())
        finally:
            await self._writer.abandon()
            RUN_SECONDS.observe(asyncio.get_running_loop().time() - started)

    # -- work ---------------------------------------------------------------------------

    async def _try(self) -> Outcome | RunFailure | Drained:
        """Return how the run has succeeded, or why it has not."""
        timer = asyncio.get_running_loop().call_later(
            self._run.timeout_s, self._stop.stop, StopReason.TIMEOUT
        )
        try:
            return await self._bounded(asyncio.create_task(self._work()))
        except (RunFailure, Drained) as end:
            return end
        except Parked as end:
            return waiting(end)
        except (LostOwnership, LogBroken):
            self._writer.check()  # a log that broke stops the program as a take-over does
            raise
        except (TailrunError, OSError) as error:
            return failure_of(error, before_a_step=True)
        except Exception as error:
            log.exception("attempt failed inside of Tailrun", **self._about())
            return RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, f"internal error: {type(error).__name__}")
        finally:
            timer.cancel()

    async def _work(self) -> Outcome:
        run, writer = self._run, self._writer
        await writer.event(EventType.STATUS, data={"status": RunStatus.RUNNING})
        if self._attempt.alone:
            await writer.say(Level.WARNING, _ALONE.format(run.redeliveries))
        done = await self._records() if run.attempt > 1 else {}
        workspace = self._bench.workspaces.open(run.user_id, run.run_id)
        if run.workspace_from is not None and not done:
            await self._copy(run.workspace_from, workspace)
        if is_agent(run):
            return succeeded(0, await self._agent(workspace))
        task = await self._task() if run.kind is RunKind.TASK else None
        steps = plan(run, task)
        writer.set_planner(steps.planner)
        tools = ToolRouter(workspace, self._bench.executor, run, writer, task)
        exit_code = await supervise(
            run, steps, done=done, log=writer, tools=tools, stop=self._stop, clock=self._bench.clock
        )
        return succeeded(exit_code)

    async def _agent(self, workspace: Workspace) -> dict[str, Any]:
        """Let the model work; return the result."""
        bench, run, writer = self._bench, self._run, self._writer
        writer.set_planner(AGENT)
        recording = await self._recording()
        rows: AgentRows = (
            AgentRows(run, self._fence, bench.agents, writer)
            if recording is None
            else ReplayRows(run, self._fence, bench.agents, writer, recording=recording)
        )
        if run.attempt > 1:
            await rows.load()
        await rows.load_earlier()
        output = ToolOutput(writer, bench.settings.agent.tool_result_bytes)
        tools = ToolRouter(workspace, bench.executor, run, output)
        agent = AgentBench(
            rows=rows,
            log=writer,
            output=output,
            tools=tools,
            models=bench.models,
            programs=bench.programs,
            stop=self._stop,
            news=self._attempt.news,
            clock=bench.clock,
            settings=bench.settings,
            replay=None if recording is None else RecordedRun.of(run, rows, recording),
        )
        return await within_a_row(await Agent(agent).run(), workspace)

    async def _recording(self) -> Recording | None:
        """Return what the run replays, if it does."""
        asked: dict[str, Any] | None = (self._run.agent or {}).get("replay")
        if asked is None:
            return None
        stores = self._bench.agents
        if (kept := asked.get("transcript")) is not None:
            text = await stores.calls.transcript(str(kept))
            if text is None:
                raise RunFailure(
                    ErrorCode.INVALID_PLAN, f"the transcript of run {kept} is not there any more"
                )
            return await asyncio.to_thread(parse, text)
        of = await stores.runs.get(str(asked.get("of")))
        if of is None or of.user_id != self._run.user_id:
            raise RunFailure(ErrorCode.INVALID_PLAN, f"there is no run {asked.get('of')} any more to replay")
        calls, steps = await stores.calls.of_run(of.run_id), await stores.runs.steps(of.run_id)
        return recording(of, calls, steps, await stores.inbox.after(of.run_id, 0))

    async def _copy(self, source: str, workspace: Workspace) -> None:
        copied = await workspace.copy_from(self._bench.workspaces.open(self._run.user_id, source))
        await self._writer.say(Level.INFO, f"workspace starts with {copied.files} files of run {source}")
        if copied.skipped:
            text = f"not copied, for they can't be opened: {named(copied.skipped)}"
            await self._writer.say(Level.WARNING, text)

    async def _task(self) -> TaskProgram:
        """Fetch the project, once per attempt; from here on its secrets are masked."""
        bench, run = self._bench, self._run
        project = await bench.projects.fetch(run.project or DEFAULT)
        self._writer.mask_with(await bench.secrets.masker(run, project))
        data = None
        if bench.settings.tools.executor == "local":
            data = bench.settings.data.folder.resolve() / "projects" / folder_name(project.project_id)
            await asyncio.to_thread(private_folder, data)
        return prepare(run, bench.task_types, project, data)

    async def _records(self) -> dict[str, StepRecord]:
        return {record.step_id: record for record in await self._bench.runs.steps(self._run.run_id)}

    async def _bounded(self, work: asyncio.Task[Outcome]) -> Outcome:
        """Wait for the work; once it is asked to stop, not longer than grace + kill + margin."""
        try:
            await self._stop.race(work)
            if not work.done():
                await asyncio.wait(
                    (work,), timeout=self._bench.settings.tools.cancel_grace_s + _STOP_MARGIN_S
                )
            if not work.done():
                return await self._break_off(work)
            return work.result()
        finally:
            if not work.done():
                work.cancel()

    async def _break_off(self, work: asyncio.Task[Outcome]) -> Outcome:
        work.cancel()
        await asyncio.wait((work,), timeout=_BREAK_OFF_S)
        if not work.done():  # a store that hangs, most likely: the run's end does not wait for it
            log.warning("left behind what does not answer", **self._about())
        elif not work.cancelled():
            return work.result()
        match self._stop.reason:
            case StopReason.CANCEL:
                raise RunFailure(ErrorCode.CANCELLED, "cancelled; it did not answer and was broken off")
            case StopReason.TIMEOUT:
                raise RunFailure(ErrorCode.TIMEOUT, "out of time; it did not answer and was broken off")
            case StopReason.DRAIN:
                raise Drained
            case _:
                raise LostOwnership

    # -- end ----------------------------------------------------------------------------

    async def _end(self, result: Outcome | RunFailure | Drained) -> None:
        run, now = self._run, self._bench.clock()
        if isinstance(result, RunFailure):
            FAILURES.labels(result.code).inc()
            waiting = await self._waiting(result, now) if result.away else None
            end = waiting or failed(run, result, now, self._bench.backoff)
        else:
            end = requeued() if isinstance(result, Drained) else result
        cancel_requested = await self._write(end)
        ATTEMPTS.labels(end.status).inc()
        self._log_end(end)
        try:
            await self._let_go(end, result, cancel_requested=cancel_requested is not None)
        except StorageError as error:
            log.warning("entry left to the reaper", error=str(error), **self._about())

    async def _waiting(self, failure: RunFailure, now: int) -> Outcome | None:
        """Give the run back without counting a try, if what it needs is away and not for too long yet."""
        paused, settings = isinstance(failure, ModelPause), self._bench.settings
        setting = "LLM_PAUSE_MAX_S" if paused else "INFRASTRUCTURE_WAIT_S"
        limit_s = settings.llm.pause_max_s if paused else settings.runs.infrastructure_wait_s
        before = Waits()
        with contextlib.suppress(StorageError):  # the end is written once the database is back
            codes = {failure.code} if paused else _INFRASTRUCTURE
            before = await self._bench.runs.waits(self._run.run_id, codes)
        left_s = limit_s - before.seconds
        if left_s <= 0 or not failure.retried_by(self._run.retry_on):
            return None
        await self._writer.say(Level.WARNING, _WAITING.format(failure.message, left_s, setting))
        rest = self._bench.patience.delay_us(before.times)
        if isinstance(failure, ModelPause):
            rest = int(failure.pause_s * 1_000_000)
        due = now + min(rest, int(left_s * 1_000_000))
        return Outcome(RunStatus.QUEUED, failure.exit_code, failure.as_dict(), next_attempt_at=due)

    async def _write(self, end: Outcome) -> int | None:
        data: dict[str, Any] = {"status": end.status}
        if end.status.terminal:
            data |= {"exit_code": end.exit_code, "error": end.error}
            data |= {} if end.result is None else {"result": end.result}
            return await self._writer.finish(end, EventType.END, data)
        if end.waiting_for is not None:
            data |= {"waiting_for": end.waiting_for, "until": format_ts(end.next_attempt_at or 0)}
            return await self._writer.finish(end, EventType.STATUS, data)
        if end.error is not None:
            data["error"] = end.error
        if end.next_attempt_at is not None:
            data["next_attempt_at"] = format_ts(end.next_attempt_at)
        return await self._writer.finish(end, EventType.STATUS, data)

    async def _let_go(self, end: Outcome, result: Any, *, cancel_requested: bool) -> None:
        queue, run, entry = self._bench.queue, self._run, self._attempt.entry
        if end.status.terminal:
            reason = dead_reason(run, result, end) if isinstance(result, RunFailure) else None
            if reason is None:
                queue.ack(entry)
            else:
                await queue.dead_letter(entry, reason, self._bench.clock(), self._writer.hide(end.error))
        elif cancel_requested:
            await queue.end_cancelled(run.run_id, entry, self._bench.clock())
        elif end.next_attempt_at is not None and end.waiting_for is None:
            RETRIES.inc(int(end.counts_retry))
            await queue.retry(run, entry, end.next_attempt_at)
        else:
            await queue.requeue([entry])

    def _log_end(self, end: Outcome) -> None:
        what = "run ended" if end.status.terminal else "run back in the queue"
        error = end.error["message"] if end.error else None
        log.info(what, status=end.status, exit_code=end.exit_code, error=error, **self._about())

    def _about(self) -> dict[str, Any]:
        return {"run_id": self._run.run_id, "attempt": self._run.attempt}


_STATUS = {ErrorCode.CANCELLED: RunStatus.CANCELLED, ErrorCode.TIMEOUT: RunStatus.TIMED_OUT}


def succeeded(exit_code: int | None, result: dict[str, Any] | None = None) -> Outcome:
    """All steps done; `result` is an agent's answer."""
    return Outcome(RunStatus.SUCCEEDED, exit_code=exit_code, result=result)


def requeued() -> Outcome:
    """The worker is stopping; the run continues elsewhere, and nothing is counted."""
    return Outcome(RunStatus.QUEUED)


def waiting(parked: Parked) -> Outcome:
    """The run waits for an answer, and no worker has it meanwhile; nothing is counted."""
    return Outcome(
        RunStatus.WAITING,
        waiting_for=parked.waiting_for,
        next_attempt_at=parked.until,
        inbox_upto=parked.inbox_upto,
    )


def failed(run: Run, failure: RunFailure, now: int, backoff: Backoff) -> Outcome:
    """Try again later where the failure allows it and tries are left; else end the run."""
    error = failure.as_dict()
    if failure.retried_by(run.retry_on) and run.retries + 1 < run.max_attempts:
        due = now + backoff.delay_us(run.retries)
        return Outcome(RunStatus.QUEUED, failure.exit_code, error, next_attempt_at=due, counts_retry=True)
    status = _STATUS.get(failure.code, RunStatus.FAILED)
    return Outcome(status, failure.exit_code, error)


def dead_reason(run: Run, failure: RunFailure, outcome: Outcome) -> str | None:
    """Why the run's entry belongs into the dead letters; None if it does not."""
    if outcome.status not in {RunStatus.FAILED, RunStatus.TIMED_OUT}:
        return None
    if failure.code is ErrorCode.WORKER_LOST and not failure.retried:
        return "poison"
    return "retries_exhausted" if failure.retried_by(run.retry_on) else None
