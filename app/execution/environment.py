"""The environment of a tool: built from nothing, so that no setting or secret of Tailrun leaks in.

A tool sees a small, plain environment, the same on every machine, plus what its run asks for.
Names that Tailrun sets itself are refused there: a run can't look like another one, and what
holds it (its folders, where programs are found) stays what the executor made it.

A program that is given as text, in a file of its own while it runs.

The file lies outside of the workspace, so that tracebacks show its real line numbers and the
run's files stay the run's.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from app.core.names import check_env
from app.core.private_files import private_folder
from app.execution.executor import Source, ToolRun
from tailrun.process.errors import ErrorCode, RunFailure

_SYSTEM_PATH = (
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/opt/homebrew/bin",
)


def build_env(tool: ToolRun, cwd: Path, tmp: Path) -> dict[str, str]:
    """Return the whole environment of `tool`, whose own `env` adds to it and may change LANG, TZ and TERM.

    `cwd` is the folder with the run's files, also for a tool that runs elsewhere.

    Raises:
        Unprocessable: the run asks for a reserved name or for something that is no variable.
    """
    check_env(tool.env)
    return {"PATH": search_path(), **_zone(), **variables(tool, str(cwd), str(tmp))}


def variables(tool: ToolRun, folder: str, tmp: str) -> dict[str, str]:
    """Return what every tool finds, wherever it runs; `folder` has the run's files. Its own `env` wins."""
    return {
        "HOME": folder,
        "TMPDIR": tmp,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "TERM": "dumb",
        "TAILRUN_RUN_ID": tool.run_id,
        "TAILRUN_ATTEMPT": str(tool.attempt),
        "TAILRUN_STEP": tool.step_id,
        "TAILRUN_WORKSPACE": folder,
        **tool.env,
    }


def search_path() -> str:
    """Put this interpreter's folder first, so that `python` is there; then the system's folders."""
    mine = str(Path(sys.executable).parent)
    given = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder in _SYSTEM_PATH]
    return os.pathsep.join(dict.fromkeys([mine, *(given or _SYSTEM_PATH)]))


def _zone() -> dict[str, str]:
    """The worker's time zone, if it has one of its own; else both follow the machine's."""
    zone = os.environ.get("TZ")
    return {"TZ": zone} if zone else {}


@contextmanager
def source_file(tmp_dir: Path, source: Source | None) -> Generator[str]:
    """Give out the path of a file that holds `source` ("" if there is none); gone at the end. Blocking."""
    if source is None:
        yield ""
        return
    try:
        private_folder(tmp_dir)
        folder = tempfile.TemporaryDirectory(prefix="code-", dir=tmp_dir, ignore_cleanup_errors=True)
    except OSError as error:
        raise _no_room(error) from error
    with folder:
        path = Path(folder.name, source.name)
        try:
            path.write_text(source.text, encoding="utf-8", newline="")
        except OSError as error:
            raise _no_room(error) from error
        yield str(path)


def _no_room(error: OSError) -> RunFailure:
    return RunFailure(ErrorCode.RESOURCE_LIMIT, f"the program could not be written to disk: {error.strerror}")
