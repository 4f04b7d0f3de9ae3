"""The environment of a tool: built from nothing, so that no setting or secret of Tailrun leaks in.

A tool sees a small, plain environment plus what its run asks for; docs/configuration.md has the table.
What holds a run (its folders, what says which run it is) stays what the executor made it. Programs are
found where the worker finds them, and before that where the run says.

Paths of Unix sockets are at most 107 bytes long, and programs put sockets below HOME and TMPDIR. So
both are short, wherever the data folder is: names in a folder of the system's temporary one, which
lead there.

A program that is given as text, in a file of its own while it runs.

The file lies outside of the workspace, so that tracebacks show its real line numbers and the
run's files stay the run's.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import structlog

from app.core.names import check_env, path_with
from app.core.private_files import private_folder
from app.execution.executor import Source, ToolRun
from app.storage.scratch import Scratch
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
_SHORT_BYTES = 40
"""What leaves 67 bytes for the socket of a program: gpg-agent's take 25, those of multiprocessing 32."""

log = structlog.get_logger()


class Folders(NamedTuple):
    """HOME and TMPDIR of one tool, as its environment says."""

    home: str
    tmp: str


def build_env(tool: ToolRun, cwd: Path, folders: Folders, path: str) -> dict[str, str]:
    """Return the whole environment of `tool`, whose own `env` adds to it and may change LANG, TZ and TERM.

    `cwd` is the folder with the run's files, also for a tool that runs elsewhere; `path` is where
    programs are found.

    Raises:
        Unprocessable: the run asks for a reserved name or for something that is no variable.
    """
    check_env(tool.env)
    env = {**_user(), **_zone(), **variables(tool, str(cwd), folders)}
    return {**env, "PATH": path_with(tool.env.get("PATH", ""), path)}


def variables(tool: ToolRun, folder: str, folders: Folders) -> dict[str, str]:
    """Return what every tool finds, wherever it runs; `folder` has the run's files. Its own `env` wins."""
    return {
        "HOME": folders.home,
        "TMPDIR": folders.tmp,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "TERM": "dumb",
        "TAILRUN_RUN_ID": tool.run_id,
        "TAILRUN_ATTEMPT": str(tool.attempt),
        "TAILRUN_STEP": tool.step_id,
        "TAILRUN_WORKSPACE": folder,
        **tool.env,
    }


def search_path(strict: str = "") -> str:
    """Put this interpreter's folder first, so that `python` is there; then the worker's own, or `strict`."""
    mine = str(Path(sys.executable).parent)
    given = [folder for folder in (strict or os.environ.get("PATH", "")).split(os.pathsep) if folder]
    return os.pathsep.join(dict.fromkeys([mine, *(given or _SYSTEM_PATH)]))


def _user() -> dict[str, str]:
    """The account that tools run as: the worker's. One without a name is named by its number."""
    number = os.geteuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    return {"USER": name, "LOGNAME": name}


def _zone() -> dict[str, str]:
    """The worker's time zone, if it has one of its own; else both follow the machine's."""
    zone = os.environ.get("TZ")
    return {"TZ": zone} if zone else {}


class ShortNames:
    """Short names for folders, in a folder of this process below the system's temporary one. Blocking.

    Where that can't be trusted or written, the folders keep their own names.
    """

    def __init__(self) -> None:
        self._root = Path(tempfile.gettempdir(), f"tr{os.geteuid()}")
        self._scratch = Scratch(self._root)
        self._count = 0

    @contextmanager
    def of(self, home: Path, tmp: Path) -> Generator[Folders]:
        """Give out HOME and TMPDIR for folders of one tool, which need not be there yet."""
        links = list[Path]()
        try:
            yield Folders(self._short(home, links), self._short(tmp, links))
        finally:
            for link in links:
                with suppress(OSError):  # the system's cleaner was faster
                    link.unlink()

    def close(self) -> None:
        """Remove our folder, and the one that holds it unless another process has one there."""
        self._scratch.close()
        self._scratch.remove_root()

    def _short(self, folder: Path, links: list[Path]) -> str:
        if len(os.fsencode(folder)) <= _SHORT_BYTES:
            return str(folder)
        self._count += 1
        try:
            link = self._folder() / f"{self._count:x}"
            link.symlink_to(folder)
        except OSError as error:
            log.warning("no short name for a folder", folder=str(folder), error=str(error))
            return str(folder)
        links.append(link)
        return str(link)

    def _folder(self) -> Path:
        """Return our folder; OSError where another user could replace the links in it."""
        private_folder(self._root)
        about = self._root.lstat()
        ours = about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        if not ours or not stat.S_ISDIR(about.st_mode):
            raise PermissionError(f"{self._root} is not a folder of this user's alone")
        return self._scratch.folder()


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
