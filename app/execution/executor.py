"""The executor interface: run one program in a run's files, pass on its lines, return its result.

The local process and the Kubernetes Job implement it; one conformance suite holds both. How the
files reach the program, and what it changed comes back, is the executor's business: a process of
this machine works in a checkout, a pod elsewhere gets an archive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from posixpath import join
from typing import Protocol

from app.core.models import ResourceRequest
from app.storage.workspace import FileInfo, Workspace
from tailrun.process.lines import LineSink
from tailrun.process.stop import ProcessResult, StopToken


@dataclass(frozen=True, slots=True)
class Resume:
    """How a step is run this time: as its `step_run`th fresh start, or (`resumed`) continued."""

    step_run: int = 1
    resumed: bool = False
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A program given as text: it is in a file `name` outside of the run's files, then `args`."""

    name: str
    text: str
    args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolRun:
    """One program to run in the files of `workspace`.

    With a `source`, `argv` is its interpreter. `timeout_s` None: only the run's own limit holds,
    `run_timeout_s`. `step_run` counts how often the step started afresh; `cursor` is the `src` of
    the last line that is committed of this one, where an earlier attempt saw a part of it.
    `cwd`: a folder to run in instead of the run's files, on the worker or in the image; then those
    words of `argv` whose numbers are in `files`, paths in the run's files, are made absolute.
    """

    run_id: str
    attempt: int
    step_id: str
    argv: tuple[str, ...]
    workspace: Workspace
    env: dict[str, str] = field(default_factory=dict[str, str])
    timeout_s: float | None = None
    source: Source | None = None
    tool: str = "argv"
    wants: ResourceRequest = field(default_factory=ResourceRequest)
    run_timeout_s: float = 3600
    step_run: int = 1
    cursor: str | None = None
    cwd: str | None = None
    files: frozenset[int] = frozenset()

    def command(self, source: str, folder: str) -> tuple[str, ...]:
        """Return the whole command line, for a source text in a file of this path.

        `folder` is where the program finds the run's files.
        """
        if self.source is not None:
            return (*self.argv, source, *self.source.args)
        if self.cwd is None:
            return self.argv
        return tuple(join(folder, word) if n in self.files else word for n, word in enumerate(self.argv))


@dataclass(frozen=True, slots=True)
class ToolResult(ProcessResult):
    """How a tool ended. DRAIN and LOST have no exit code where it keeps running for the next worker.

    `changed`: what it wrote, changed or (size -1) removed; `skipped`: what can't be kept.
    `stages`: where it was when, in microseconds since the epoch, if the executor has stages.
    """

    changed: Sequence[FileInfo] = ()
    skipped: Sequence[str] = ()
    stages: Mapping[str, int] = field(default_factory=dict[str, int])


class CannotRun(Exception):
    """Tools can't be run with these settings; the message names what to do."""


class Executor(Protocol):
    """Runs programs.

    Returns only when the program and all its descendants are gone, every line was handed to
    `sink` and every change was written to the workspace. Raises `RunFailure` (START_FAILED,
    EXECUTOR_UNAVAILABLE, RESOURCE_LIMIT …) when the program never ran or was ended from outside,
    and the workspace's errors. If `sink` raises, the program is killed and the error is raised.
    When the calling task is cancelled, the program is killed before CancelledError is raised again.
    After LOST nothing is written to the workspace.
    """

    reattaches: bool
    """Whether a program keeps running without its worker: DRAIN and LOST leave it running, and a `run`
    with the same run, step and `step_run` finds it."""

    async def start(self) -> None:
        """Get ready to run tools.

        Raises:
            CannotRun: it never will be.
        """
        ...

    async def run(self, tool: ToolRun, sink: LineSink, stop: StopToken) -> ToolResult:
        """Run `tool` to its end, or continue it."""
        ...

    def has_program(self, program: str, wants: ResourceRequest) -> bool:
        """Whether a program can be started by this name; True where that is unknown."""
        ...

    async def on_committed(self, tool: ToolRun) -> None:
        """Called once the result of `tool` is committed; releases what was kept for it."""
        ...

    def heartbeat(self) -> None:
        """Report that the worker still owns its runs; called from any thread, once a second.

        After `LEASE_S` − 1 s without it every program is killed that can't be re-attached to.
        """
        ...

    async def close(self) -> None:
        """Kill what still runs and can't be re-attached to, and close everything."""
        ...
