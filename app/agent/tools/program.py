"""What every tool gets and gives, and the one way in which tools run a program.

A program sees the run's files as its working directory; what it changed is written back
when it ends, however it ends.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.agent.run_log import RunLog
from app.errors import LostOwnership
from app.execution.environment import build_env
from app.execution.executor import Executor, StopReason, StopToken, ToolResult, ToolRun, Usage
from app.models import Level, Line, Run, Step
from app.storage.workspace import FileInfo, Workspace

_NAMED = 5


@dataclass(frozen=True, slots=True)
class Bench:
    """What the tools of one run work with.

    `tmp_dir` is a folder outside of the workspace.
    """

    run: Run
    workspace: Workspace
    executor: Executor
    log: RunLog
    tmp_dir: Path

    def finds(self, program: str) -> bool:
        """Whether programs of this run can be started by this name."""
        nothing = ToolRun(self.run.run_id, self.run.attempt, "", (program,), self.tmp_dir)
        return shutil.which(program, path=build_env(nothing, self.tmp_dir)["PATH"]) is not None


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """How a step ended. `files`: written, changed or (size -1) removed by it."""

    exit_code: int | None = None
    result: dict[str, Any] | None = None
    signal: int | None = None
    stopped: StopReason | None = None
    usage: Usage | None = None
    files: Sequence[FileInfo] = field(default_factory=tuple[FileInfo, ...])


async def run_program(
    bench: Bench,
    step: Step,
    argv: Sequence[str],
    stop: StopToken,
    env: Mapping[str, str] | None = None,
) -> ToolOutcome:
    """Run `argv` in the run's files and wait for its end; the run's own `env` goes before `env`.

    Raises:
        RunFailure: the program never ran.
        LostOwnership: the run goes on elsewhere; nothing is written back.
    """

    async def sink(lines: Sequence[Line]) -> None:
        await bench.log.lines(lines, step.id)

    async with bench.workspace.checkout() as checkout:
        tool = ToolRun(
            run_id=bench.run.run_id,
            attempt=bench.run.attempt,
            step_id=step.id,
            argv=tuple(argv),
            cwd=checkout.path,
            env={**(env or {}), **(bench.run.spec.get("env") or {})},
            timeout_s=step.timeout_s,
        )
        ended = await bench.executor.run(tool, sink, stop)
        if ended.stopped is StopReason.LOST:
            raise LostOwnership("the run was taken over while its program ran")
    await _tell_skipped(bench, step, checkout.skipped)
    return _outcome(ended, checkout.changed)


async def _tell_skipped(bench: Bench, step: Step, skipped: Sequence[str]) -> None:
    if skipped:
        names = ", ".join(repr(name) for name in sorted(skipped)[:_NAMED])
        more = f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
        note = f"not kept, for links, special files and odd names have no place in a workspace: {names}{more}"
        await bench.log.say(Level.WARNING, note, step.id)


def _outcome(ended: ToolResult, changed: Sequence[FileInfo]) -> ToolOutcome:
    removed = sum(1 for file in changed if file.size < 0)
    return ToolOutcome(
        exit_code=ended.exit_code,
        result={"changed": len(changed) - removed, "removed": removed},
        signal=ended.signal,
        stopped=ended.stopped,
        usage=ended.usage,
        files=tuple(changed),
    )
