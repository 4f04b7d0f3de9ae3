"""What every tool gets and gives, and the one way in which tools run a program.

A program sees the run's files as its working directory; what it changed is written back
when it ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.agent.tools.failures import named
from app.core.errors import LostOwnership
from app.core.events import EventType
from app.core.models import Run, Step, StepRecord
from app.execution.executor import Executor, Resume, Source, ToolResult, ToolRun
from app.storage.workspace import FileInfo, Workspace
from tailrun.process.lines import Level, Line
from tailrun.process.stop import StopReason, StopToken, Usage


class RunLog(Protocol):
    """The one writer of a run's stream while an attempt owns it, `app.stream.writer`. Calls are in order.

    Every call may raise `LostOwnership` and `LogBroken`.
    """

    async def lines(self, lines: Sequence[Line], step: str | None) -> Sequence[Line]:
        """Append output lines; waits when too much is unwritten (backpressure).

        Returns what is written: the lines without secrets.
        """
        ...

    async def say(self, level: Level, content: str, step: str | None = None) -> None:
        """Append one line of Tailrun's own (`stream: "system"`)."""
        ...

    async def event(
        self,
        kind: EventType,
        *,
        level: Level | None = None,
        step: str | None = None,
        content: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Append an event of another type (`step`, `artifact`, `usage` …)."""
        ...

    async def save_step(self, record: StepRecord) -> None:
        """Put a step record into the next transaction."""
        ...

    async def source(self, step: str) -> str | None:
        """Return the `src` of the last line that is committed of a step, if one has any."""
        ...

    async def flush(self) -> None:
        """Return once everything handed over so far is committed to the database."""
        ...


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What the tools of one run work with."""

    run: Run
    workspace: Workspace
    executor: Executor
    log: RunLog
    again: Resume = field(default_factory=Resume)
    unsettled: list[ToolRun] = field(default_factory=list[ToolRun])
    """Programs whose result is not committed yet."""


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """How a step ended. `files`: written, changed or (size -1) removed by it.

    `stages`: when its pod reached what, in microseconds since the epoch.
    """

    exit_code: int | None = None
    result: dict[str, Any] | None = None
    signal: int | None = None
    stopped: StopReason | None = None
    usage: Usage | None = None
    files: Sequence[FileInfo] = field(default_factory=tuple[FileInfo, ...])
    stages: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class _StepSink:
    """Puts a step's lines into the run's log."""

    log: RunLog
    step_id: str

    async def __call__(self, lines: Sequence[Line], /) -> None:
        await self.log.lines(lines, self.step_id)

    async def gap(self, lost: int, why: str) -> None:
        await self.log.event(
            EventType.GAP, level=Level.WARNING, step=self.step_id, content=why, data={"lost": lost}
        )


async def run_program(
    bench: ToolContext,
    step: Step,
    argv: Sequence[str],
    stop: StopToken,
    *,
    env: Mapping[str, str] | None = None,
    source: Source | None = None,
    cwd: str | None = None,
    files: frozenset[int] = frozenset(),
) -> ToolOutcome:
    """Run `argv` in the run's files and wait for its end; the run's own `env` goes before `env`.

    `cwd` and `files` as in `ToolRun`.

    Raises:
        RunFailure: the program never ran, or was ended from outside.
        LostOwnership: another worker has the run; nothing is written back.
    """
    tool = ToolRun(
        run_id=bench.run.run_id,
        attempt=bench.run.attempt,
        step_id=step.id,
        argv=tuple(argv),
        workspace=bench.workspace,
        env={**(env or {}), **(bench.run.spec.get("env") or {})},
        timeout_s=step.timeout_s,
        source=source,
        tool=step.tool,
        wants=step.wants,
        run_timeout_s=bench.run.timeout_s,
        cwd=cwd,
        files=files,
        step_run=bench.again.step_run,
        cursor=bench.again.cursor,
    )
    bench.unsettled.append(tool)
    ended = await bench.executor.run(tool, _StepSink(bench.log, step.id), stop)
    if ended.stopped is StopReason.LOST:
        raise LostOwnership("the run was taken over while its program ran")
    await _tell_skipped(bench, step, ended.skipped)
    return _outcome(ended)


async def _tell_skipped(bench: ToolContext, step: Step, skipped: Sequence[str]) -> None:
    if skipped:
        kinds = "special files, odd names and what can't be opened"
        kinds = f"links, {kinds}" if bench.executor.reattaches else kinds
        note = f"not kept, for {kinds} have no place in a workspace: {named(skipped)}"
        await bench.log.say(Level.WARNING, note, step.id)


def _outcome(ended: ToolResult) -> ToolOutcome:
    removed = sum(1 for file in ended.changed if file.size < 0)
    return ToolOutcome(
        exit_code=ended.exit_code,
        result={"changed": len(ended.changed) - removed, "removed": removed},
        signal=ended.signal,
        stopped=ended.stopped,
        usage=ended.usage,
        files=tuple(ended.changed),
        stages=ended.stages,
    )
