"""The tools `shell` and `argv`: a command line, and a program with its arguments."""

from __future__ import annotations

from app.agent.tools.program import Bench, ToolOutcome, run_program
from app.execution.executor import StopToken
from app.models import Step


async def run_shell(bench: Bench, step: Step, stop: StopToken) -> ToolOutcome:
    """Run a command line with bash, or with sh where there is no bash."""
    shell = "bash" if bench.executor.finds("bash", step.wants) else "sh"
    return await run_program(bench, step, [shell, "-c", step.args["command"]], stop)


async def run_argv(bench: Bench, step: Step, stop: StopToken) -> ToolOutcome:
    """Run a program as it was given, without a shell in between."""
    return await run_program(bench, step, step.args["argv"], stop)
