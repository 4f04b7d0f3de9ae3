"""The tool `code`: a program given as source text.

The source goes into a file of its own outside of the workspace, so that tracebacks show its
real line numbers and the run's files stay the run's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.agent.tools.program import Bench, ToolOutcome, run_program
from app.errors import ErrorCode, RunFailure
from app.execution.executor import StopToken
from app.models import Step


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


async def run_code(bench: Bench, step: Step, stop: StopToken) -> ToolOutcome:
    """Run a source text with its interpreter, in the run's files."""
    language = _LANGUAGES[step.args["language"]]
    _require(language.interpreter[0], bench)
    with _source_file(bench.tmp_dir, language.file_name, step.args["source"]) as source:
        argv = [*language.interpreter, str(source), *step.args["args"]]
        return await run_program(
            bench, step, argv, stop, {**_SEES_WORKSPACE, **bench.run.spec.get("env", {})}
        )


def _require(program: str, bench: Bench) -> None:
    if not bench.finds(program):
        raise RunFailure(
            ErrorCode.START_FAILED,
            f"{program} is not installed where this worker runs its programs: "
            "install it there, or write the step in another language",
            retried=False,
        )


@contextmanager
def _source_file(tmp_dir: Path, name: str, source: str) -> Generator[Path]:
    try:
        tmp_dir.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="code-", dir=tmp_dir, ignore_cleanup_errors=True)
    except OSError as error:
        raise _no_room(error) from error
    with folder:
        path = Path(folder.name, name)
        try:
            path.write_text(source, encoding="utf-8", newline="")
        except OSError as error:
            raise _no_room(error) from error
        yield path


def _no_room(error: OSError) -> RunFailure:
    return RunFailure(ErrorCode.RESOURCE_LIMIT, f"the program could not be written to disk: {error.strerror}")
