"""The supervisor: steps, one after the other, each with its own record: those of a plan, or an agent's.

It promises that a finished step is never run again, whichever worker continues the run:
a step's record is committed before the next step starts. An agent's program starts only when it is
committed that it does, for a program that was killed looks like one that never began.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.agent.output import ToolOutput
from app.agent.planner import Plan
from app.agent.step_lines import ended, exit_nonzero, started
from app.agent.tools.program import RunLog, ToolOutcome
from app.agent.tools.router import ToolRouter, runs_program
from app.core.errors import LostOwnership
from app.core.events import EventType
from app.core.models import Run, Step, StepRecord, StepStatus
from app.execution.executor import Resume
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Level
from tailrun.process.stop import StopReason, StopToken

MAX_ARTIFACTS = 100
"""Artifact events of one step; a step that unpacks an archive must not flood the stream."""

_STATUS = {ErrorCode.TIMEOUT: StepStatus.TIMED_OUT, ErrorCode.CANCELLED: StepStatus.CANCELLED}

_NOT_BEGUN = frozenset({StepStatus.PROPOSED, StepStatus.WAITING})
_NEVER_TOLERATED = frozenset({ErrorCode.CANCELLED, ErrorCode.EXECUTOR_UNAVAILABLE})


class Drained(Exception):
    """The worker is shutting down: another one continues the run, from the step that was interrupted."""


async def supervise(
    run: Run,
    plan: Plan,
    *,
    done: Mapping[str, StepRecord],
    log: RunLog,
    tools: ToolRouter,
    stop: StopToken,
    clock: Callable[[], int],
) -> int | None:
    """Run the steps that earlier attempts have not finished; return the run's exit code.

    `done` holds the records of earlier attempts by step id. A failed step that continues on
    error leaves the exit code at 0.

    Raises:
        RunFailure: a step failed, or the run was cancelled (CANCELLED) or out of time (TIMEOUT).
        Drained: the worker is shutting down.
        LostOwnership: another attempt owns the run.
    """
    if not done:
        for level, note in plan.notes:
            await log.say(level, note)
    supervision = Supervision(run, len(plan.steps), log, tools, stop, clock)
    for idx, step in enumerate(plan.steps):
        earlier = done.get(step.id)
        if earlier is None or not await supervision.is_final(step, earlier):
            await supervision.perform(idx, step, earlier)
    return 0


@dataclass(slots=True)
class Supervision:
    """One attempt at the steps of a run. `unsaved`: a finished step may not be committed yet.

    `of` is how many steps there are, where that is known. `output`, through which its lines go then, keeps
    what the model of an agent is told of its steps.
    """

    run: Run
    of: int | None
    log: RunLog
    tools: ToolRouter
    stop: StopToken
    clock: Callable[[], int]
    output: ToolOutput | None = None
    unsaved: bool = False

    async def is_final(self, step: Step, earlier: StepRecord) -> bool:
        """Whether an earlier attempt's record is kept; raise its failure if that was final."""
        error = earlier.error or {}
        if earlier.status is StepStatus.SUCCEEDED or error.get("tolerated"):
            what = f"{step.id} {earlier.status} in attempt {earlier.attempt}: not run again"
            await self.log.say(Level.INFO, what, step.id)
            return True
        if earlier.status.finished and not error.get("retried"):
            raise _failure_of(earlier)
        if not earlier.status.finished and self.tools.reattaches(step):
            return False
        what = "failed" if earlier.status.finished else "was interrupted"
        again = f"{step.id} {what} in attempt {earlier.attempt}: it starts again"
        await self.log.say(Level.WARNING, again, step.id)
        return False

    def go_on(self) -> None:
        """Raise what it means, if the run was asked to stop."""
        if self.stop.reason is not None:
            raise self._interruption(self.stop.reason)

    async def perform(self, idx: int, step: Step, earlier: StepRecord | None = None) -> StepRecord:
        """Bring one step to its end, and its record, which is returned.

        `earlier` is what there is of it: an earlier attempt's, or what a model has proposed.
        """
        self.go_on()
        ahead = self.output is not None and runs_program(step)
        if self.unsaved and not ahead:
            await self.log.flush()
        again = await self._again(step, earlier)
        record = await self._begin(idx, step, again, earlier)
        if ahead:
            await self.log.flush()
        outcome, failure = await self._call(step, again)
        tolerated = failure is not None and self._tolerates(step, failure)
        await self._report(step, outcome)
        ended = await self._finish(record, step, outcome, failure, tolerated=tolerated)
        if self.tools.unsettled:
            await self.log.flush()
            await self.tools.settle()
        if failure is not None and not tolerated:
            raise failure
        if failure is not None and self.output is None:
            await self.log.say(Level.WARNING, f"{step.id} failed; it may, so the run continues", step.id)
        return ended

    async def _again(self, step: Step, earlier: StepRecord | None) -> Resume:
        """Return which run of the step this is: an interrupted one that outlived its worker continues."""
        if earlier is None or earlier.status in _NOT_BEGUN or not self.tools.reattaches(step):
            return Resume()
        before = int((earlier.result or {}).get("step_run", 1))
        if earlier.status.finished:
            return Resume(before + 1)
        return Resume(before, resumed=True, cursor=await self.log.source(step.id))

    async def _begin(self, idx: int, step: Step, again: Resume, earlier: StepRecord | None) -> StepRecord:
        record = StepRecord(
            run_id=self.run.run_id,
            step_id=step.id,
            idx=idx,
            tool=step.tool,
            args=step.args,
            status=StepStatus.RUNNING,
            attempt=self.run.attempt,
            started_at=earlier.started_at if earlier and again.resumed else self.clock(),
            result={"step_run": again.step_run} if self.tools.reattaches(step) else None,
            call=earlier.call if earlier else None,
            call_id=earlier.call_id if earlier else None,
            policy=earlier.policy if earlier else None,
        )
        if self.output is not None:
            self.output.begin(resumed=again.resumed)
        data: dict[str, Any] = {"tool": step.tool, "status": record.status, "n": idx + 1}
        data |= {"of": self.of} if record.call is None else {"call": record.call}
        content = started(step)
        if again.resumed:
            data["resumed"], content = True, f"{content} (re-attached)"
        await self.log.event(EventType.STEP, level=Level.INFO, step=step.id, content=content, data=data)
        await self.log.save_step(record)
        return record

    async def _call(self, step: Step, again: Resume) -> tuple[ToolOutcome, RunFailure | None]:
        """Run the tool; return how it ended, and the failure that this means."""
        try:
            outcome = await self.tools.call(step, self.stop, again)
        except RunFailure as failure:
            failure.step = step.id
            return ToolOutcome(exit_code=failure.exit_code), failure
        if outcome.stopped is not None:
            interruption = self._interruption(outcome.stopped, step, outcome.exit_code)
            if not isinstance(interruption, RunFailure):
                raise interruption
            return outcome, interruption
        return outcome, exit_nonzero(step, outcome) if outcome.exit_code else None

    def _interruption(
        self,
        reason: StopReason,
        step: Step | None = None,
        exit_code: int | None = None,
    ) -> RunFailure | Drained | LostOwnership:
        """Return what it means that the run, or one step of it, was asked to stop."""
        at = step.id if step else None
        if StopReason.LOST in {reason, self.stop.reason}:
            return LostOwnership("another attempt owns the run")
        if reason is StopReason.DRAIN:
            return Drained("the worker is shutting down")
        if reason is StopReason.CANCEL:
            return RunFailure(ErrorCode.CANCELLED, "cancelled on request", step=at, exit_code=exit_code)
        limit = f"the run's limit of {self.run.timeout_s:g} s"
        if step is not None and step.timeout_s is not None and self.stop.reason is not StopReason.TIMEOUT:
            limit = f"its timeout_s of {step.timeout_s:g} s"
        return RunFailure(ErrorCode.TIMEOUT, f"stopped at {limit}", step=at, exit_code=exit_code)

    def _tolerates(self, step: Step, failure: RunFailure) -> bool:
        """Whether the run continues: not when it is itself over, nor while nothing can be run at all."""
        over = failure.code is ErrorCode.TIMEOUT and self.stop.reason is StopReason.TIMEOUT
        return step.continue_on_error and not over and failure.code not in _NEVER_TOLERATED

    async def _report(self, step: Step, outcome: ToolOutcome) -> None:
        files = [file for file in outcome.files if file.size >= 0]
        for file in files[:MAX_ARTIFACTS]:
            data = {"path": file.path, "size": file.size}
            await self.log.event(EventType.ARTIFACT, level=Level.INFO, step=step.id, data=data)
        if len(files) > MAX_ARTIFACTS:
            more = f"{len(files) - MAX_ARTIFACTS} more files were written"
            await self.log.say(Level.INFO, more, step.id)
        if outcome.usage is not None:
            data = {
                "cpu_s": round(outcome.usage.cpu_s, 3),
                "wall_s": round(outcome.usage.wall_s, 3),
                "max_rss_bytes": outcome.usage.max_rss_bytes,
            }
            await self.log.event(EventType.USAGE, step=step.id, data=data)

    async def _finish(
        self,
        record: StepRecord,
        step: Step,
        outcome: ToolOutcome,
        failure: RunFailure | None,
        *,
        tolerated: bool,
    ) -> StepRecord:
        status = _STATUS.get(failure.code, StepStatus.FAILED) if failure else StepStatus.SUCCEEDED
        now = self.clock()
        duration_s = max(0, now - record.started_at) / 1_000_000
        error = _error(failure, self.run.retry_on, tolerated=tolerated) if failure else None
        result = {**(outcome.result or {}), **(record.result or {})} or None
        ended_record = replace(
            record,
            status=status,
            ended_at=now,
            exit_code=outcome.exit_code,
            result=result,
            error=error,
            for_model=self.output.told(outcome, failure) if self.output else None,
        )
        await self.log.save_step(ended_record)
        await self.log.event(
            EventType.STEP,
            level=_level(failure, tolerated=tolerated),
            step=step.id,
            content=ended(step, failure, duration_s),
            data={
                "tool": step.tool,
                "status": status,
                "exit_code": outcome.exit_code,
                "duration_s": round(duration_s, 3),
                **({} if record.call is None else {"call": record.call}),
                **({"stages": outcome.stages} if outcome.stages else {}),
            },
        )
        self.unsaved = True
        return ended_record


def _level(failure: RunFailure | None, *, tolerated: bool) -> Level:
    if failure is None:
        return Level.INFO
    calm = tolerated or failure.code is ErrorCode.CANCELLED
    return Level.WARNING if calm else Level.ERROR


def _error(
    failure: RunFailure, retry_on: Collection[str] | None, *, tolerated: bool
) -> dict[str, str | bool]:
    """Return a record's `error`; the next attempt reads from it whether the step starts again."""
    return {
        "code": failure.code,
        "message": failure.message,
        "retried": failure.retried_by(retry_on),
        "tolerated": tolerated,
    }


def _failure_of(record: StepRecord) -> RunFailure:
    """Return the failure that a record of an earlier attempt holds."""
    error = record.error or {}
    return RunFailure(
        ErrorCode(error.get("code", ErrorCode.EXIT_NONZERO)),
        error.get("message", f"{record.tool} failed in attempt {record.attempt}"),
        step=record.step_id,
        exit_code=record.exit_code,
        retried=False,
    )
