"""The tool `code`: a program given as source text.

The tools `shell` and `argv`: a command line, and a program with its arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.agent.tools.program import ToolContext, ToolOutcome, run_program
from app.core.models import Step
from app.execution.executor import Source
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.stop import StopToken


@dataclass(frozen=True, slots=True)
class _Language:
    interpreter: tuple[str, ...]
    file_name: str


_LANGUAGES = {
    "python": _Language(("python", "-u"), "main.py"),
    "bash": _Language(("bash",), "main.sh"),
    "node": _Language(("node",), "main.js"),
}

_SEES_WORKSPACE = {"PYTHONPATH": "."}
"""A script's own folder comes first on Python's path, and that is not the workspace."""


async def run_code(bench: ToolContext, step: Step, stop: StopToken) -> ToolOutcome:
    """Run a source text with its interpreter, in the run's files."""
    language = _LANGUAGES[step.args["language"]]
    _require(language.interpreter[0], bench, step)
    source = Source(language.file_name, step.args["source"], tuple(step.args["args"]))
    return await run_program(bench, step, language.interpreter, stop, env=_SEES_WORKSPACE, source=source)


def _require(program: str, bench: ToolContext, step: Step) -> None:
    if not bench.executor.has_program(program, step.wants):
        raise RunFailure(
            ErrorCode.START_FAILED,
            f"{program} is not installed where this worker runs its programs: "
            "install it there, or write the step in another language",
            retried=False,
        )


async def run_shell(bench: ToolContext, step: Step, stop: StopToken) -> ToolOutcome:
    """Run a command line with bash, or with sh where there is no bash."""
    shell = "bash" if bench.executor.has_program("bash", step.wants) else "sh"
    return await run_program(bench, step, [shell, "-c", step.args["command"]], stop)


async def run_argv(bench: ToolContext, step: Step, stop: StopToken) -> ToolOutcome:
    """Run a program as it was given, without a shell in between."""
    return await run_program(bench, step, step.args["argv"], stop)
