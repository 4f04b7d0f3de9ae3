"""The lines above and below a step in a run's stream."""

from __future__ import annotations

import shlex
from pathlib import PurePath
from signal import Signals
from typing import Any

from app.agent.tools.program import ToolOutcome
from app.core.models import Step
from app.plan.steps import ARGV, TASK
from tailrun.process.errors import ErrorCode, RunFailure

MAX_HEADING = 120


def started(step: Step) -> str:
    """What the step is about to do: `▸ s2 shell: wc -l docs/*.md`."""
    return _cut(f"▸ {step.id} {step.tool}: {_subject(step.tool, step.args)}")


def ended(step: Step, failure: RunFailure | None, duration_s: float) -> str:
    """How it went: `✓ s2 shell: done in 0.8 s`, `✗ s2 shell: exit code 3 after 0.8 s`."""
    if failure is None:
        return f"✓ {step.id} {step.tool}: done in {duration_s:.1f} s"
    return f"✗ {step.id} {step.tool}: {failure.message} (after {duration_s:.1f} s)"


def exit_nonzero(step: Step, outcome: ToolOutcome) -> RunFailure:
    """Describe with which code, or by which signal, a program ended."""
    message = f"{_program(step)} ended with exit code {outcome.exit_code}"
    if outcome.signal is not None:
        message += f" ({_signal(outcome.signal)})"
    return RunFailure(ErrorCode.EXIT_NONZERO, message, step=step.id, exit_code=outcome.exit_code)


def _program(step: Step) -> str:
    """Name what ended as a person would: the program of an argv, else the tool."""
    if step.tool in {ARGV, TASK}:
        return PurePath(step.args["argv"][0]).name or step.tool
    return step.tool


def _signal(number: int) -> str:
    try:
        return f"killed by {Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


def _subject(tool: str, args: dict[str, Any]) -> str:
    if tool in {ARGV, TASK}:
        return _first_line(shlex.join(args["argv"]))
    if tool == "code":
        return f"{args['language']}: {_first_line(args['source'])}"
    if tool == "shell":
        return _first_line(args["command"])
    return args.get("path") or args.get("prefix") or "all files"


def _first_line(text: str) -> str:
    """Return the first line that is not empty, with a mark if it is not all."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "(nothing)" if not lines else lines[0] + (" …" if len(lines) > 1 else "")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_HEADING else text[: MAX_HEADING - 1] + "…"
