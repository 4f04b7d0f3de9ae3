"""The tool `task`: the program of a typed task, with its project's environment, where it lives.

What is secret goes from the project's configuration into the environment only: the argv is written
to the log and to the step's record.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from app.agent.tools.program import ToolContext, ToolOutcome, run_program
from app.core.errors import Unprocessable
from app.core.models import ResourceRequest, Run, Step
from app.plan.cli_builder import build, environment, folder
from app.plan.projects import DATA, ProjectConfig
from app.plan.task_types import TaskCall, TaskTypes
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.stop import StopToken

_PYTHON = "python"


@dataclass(frozen=True, slots=True)
class TaskProgram:
    """What a typed task runs, and where. `files`: which words of the argv name files of the run."""

    task: TaskCall
    argv: tuple[str, ...]
    files: frozenset[int]
    env: dict[str, str]
    cwd: str | None
    wants: ResourceRequest


def prepare(run: Run, types: TaskTypes, project: ProjectConfig, data: Path | None) -> TaskProgram:
    """Make the program of a run of kind `task`.

    `data` is a folder that the project's tasks share; None where programs run in containers.

    Raises:
        RunFailure: INVALID_PLAN; this worker's declarations or the project don't have what it needs.
    """
    spec = run.spec
    try:
        task = types.check(spec["type"], spec.get("command"), spec.get("params") or {})
        argv = build(task, project)
        elsewhere = build(task, project, "/")
        env, cwd = environment(task, project), folder(task, project)
    except Unprocessable as error:
        raise RunFailure(ErrorCode.INVALID_PLAN, error.message) from error
    files = frozenset(n for n, words in enumerate(zip(argv, elsewhere, strict=True)) if words[0] != words[1])
    if data is not None:
        return TaskProgram(task, tuple(argv), files, {DATA: str(data), **env}, cwd, ResourceRequest())
    wants = ResourceRequest(image=task.type.image)
    return TaskProgram(task, tuple(argv), files, env, cwd, wants)


async def run_task(bench: ToolContext, step: Step, stop: StopToken, program: TaskProgram) -> ToolOutcome:
    """Run the program to its end."""
    argv = list(program.argv)
    if argv[0] == _PYTHON and not bench.executor.has_program(_PYTHON, step.wants):
        argv[0] = sys.executable
    return await run_program(bench, step, argv, stop, env=program.env, cwd=program.cwd, files=program.files)
