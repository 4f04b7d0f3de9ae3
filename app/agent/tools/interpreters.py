"""The tool `code`: a program given as source text.

The tools `shell` and `argv`: a command line, and a program with its arguments.
"""

from __future__ import annotations

import re
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

_CODING = re.compile(r"(coding[:=][ \t]*)[-\w.]+", re.ASCII)
"""PEP 263, from the word itself on."""

_SEES_WORKSPACE = {"PYTHONPATH": "."}
"""A script's own folder comes first on Python's path, and that is not the workspace."""


async def run_code(bench: ToolContext, step: Step, stop: StopToken) -> ToolOutcome:
    """Run a source text with its interpreter, in the run's files."""
    language = _LANGUAGES[step.args["language"]]
    _require(language.interpreter[0], bench, step)
    text = as_written_here(step.args["source"], step.args["language"])
    source = Source(language.file_name, text, tuple(step.args["args"]))
    return await run_program(bench, step, language.interpreter, stop, env=_SEES_WORKSPACE, source=source)


def as_written_here(text: str, language: str) -> str:
    """Return a source as an editor on this system would have saved it in UTF-8.

    Editors on Windows end lines with CRLF and begin files with a byte order mark, of both of which a shell
    makes words. A Python source may declare the encoding of the file that it was; here it is text, and
    becomes UTF-8.
    """
    text = text.removeprefix("\ufeff")
    if language == "bash":
        return text.replace("\r\n", "\n")
    if language == "python":
        lines = text.split("\n", 2)
        head = [_CODING.sub(r"\1utf-8", line) if _is_comment(line) else line for line in lines[:2]]
        return "\n".join([*head, *lines[2:]])
    return text


def _is_comment(line: str) -> bool:
    return line.lstrip(" \t\f").startswith("#")


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
    return await run_program(bench, step, [shell, "-c", as_written_here(step.args["command"], "bash")], stop)


async def run_argv(bench: ToolContext, step: Step, stop: StopToken) -> ToolOutcome:
    """Run a program as it was given, without a shell in between."""
    return await run_program(bench, step, step.args["argv"], stop)
