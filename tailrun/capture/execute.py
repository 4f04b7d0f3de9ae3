"""Runs one program to its end, its lines into an `OutputCapture`."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailrun.capture.cancellation import CancellationToken, StopSignal
from tailrun.capture.output_capture import OutputCapture
from tailrun.capture.process import DirectCommand, inherited_env, run_direct
from tailrun.capture.registry import RunRegistry, RunStatus
from tailrun.capture.resources import ResourceManager
from tailrun.errors import TailrunError
from tailrun.process.aio import run_to_completion
from tailrun.process.errors import RunFailure
from tailrun.process.lines import Level, Line, Stream
from tailrun.process.stop import ProcessResult, StopReason, StopToken

_PYTHON = frozenset({".py", ".pyw", ".pyz"})


class TaskNotStarted(TailrunError):
    """The program could not be started: it is missing, may not be run, or its folder is."""


async def execute_long_running_task(
    run_id: str,
    script_path: str | Path,
    output_capture: OutputCapture,
    args: Sequence[str] | None = None,
    cwd: str | Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    registry: RunRegistry | None = None,
    resources: ResourceManager | None = None,
    token: CancellationToken | None = None,
    timeout_s: float | None = None,
    grace_s: float = 5,
) -> int:
    """Run a script or program and return its exit code (128 + n after signal n, as shells count).

    A file that ends in `.py` runs with this interpreter, unbuffered; anything else runs itself, and
    a bare name is looked up on PATH. It inherits this process's environment, changed by `env`.

    To stop it, cancel the calling task, cancel `token`, or set `timeout_s`: then the program's
    whole group is asked to end (SIGTERM), and killed `grace_s` seconds later. Whatever it leaves
    behind when it ends is ended too. However it ends, its run in `registry` has its final status,
    and streams of the run end. Call `output_capture.cleanup_run` when it is no longer read.

    Raises:
        TaskNotStarted: the program never ran.
        ResourceLimitException: `resources` found too little free.
        StopSignal: `token` was cancelled.
        TimeoutError: it was stopped at `timeout_s`.
        asyncio.CancelledError: the calling task was cancelled, and the program has ended.
    """
    if registry is not None:
        registry.get_run(run_id)
    output_capture.open_run(run_id)
    running: asyncio.Task[ProcessResult] | None = None
    error: BaseException | None = None
    try:
        async with resources.place() if resources is not None else contextlib.nullcontext():
            stop = StopToken()
            command = DirectCommand(_argv(script_path, args or ()), _folder(cwd), inherited_env(env or {}))
            sink = _CaptureSink(output_capture, run_id)
            with _obeying(token, stop):
                work = run_direct(command, sink, stop, grace_s=grace_s, timeout_s=timeout_s)
                running = asyncio.create_task(work)
                result = await run_to_completion(running, lambda: stop.stop(StopReason.CANCEL))
        return _exit_code(result, timeout_s)
    except RunFailure as failure:
        error = failure
        raise TaskNotStarted(failure.message) from failure
    except BaseException as raised:
        error = raised
        raise
    finally:
        exit_code = _code_of(running)
        _tell(registry, output_capture, run_id, exit_code, error)
        output_capture.end_run(run_id, exit_code)


@dataclass(frozen=True, slots=True)
class _CaptureSink:
    """Writes in a thread: a slow disk holds up this program at its pipe, and no other."""

    capture: OutputCapture
    run_id: str

    async def __call__(self, lines: Sequence[Line], /) -> None:
        await asyncio.to_thread(self.capture.append_lines, self.run_id, lines)

    async def gap(self, lost: int, why: str) -> None:
        """Nothing is lost between this process and a program of its own."""


def _argv(script: str | Path, args: Sequence[str]) -> tuple[str, ...]:
    """Return the command line; a path to a program is made absolute, for `cwd` is another folder."""
    path = Path(script)
    if path.suffix.lower() in _PYTHON:
        if not path.is_file():
            raise TaskNotStarted(f"There is no file {path.absolute()}.")
        return (sys.executable, "-u", str(path.absolute()), *args)
    bare = len(path.parts) == 1 and (shutil.which(str(script)) is not None or not path.exists())
    return (str(script) if bare else str(path.absolute()), *args)


def _folder(cwd: str | Path | None) -> Path:
    return Path(cwd).absolute() if cwd is not None else Path.cwd()


@contextlib.contextmanager
def _obeying(token: CancellationToken | None, stop: StopToken) -> Generator[None]:
    """Pass a cancel of the token on, whichever thread it comes from."""
    if token is None:
        yield
        return
    token.throw_if_cancelled()
    loop = asyncio.get_running_loop()

    def pass_on() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing of it runs any more
            loop.call_soon_threadsafe(stop.stop, StopReason.CANCEL)

    forget = token.on_cancel(pass_on)
    try:
        yield
    finally:
        forget()


def _exit_code(result: ProcessResult, timeout_s: float | None) -> int:
    if result.stopped is StopReason.TIMEOUT:
        raise TimeoutError(f"stopped at its timeout_s of {timeout_s:g} s")
    if result.stopped is StopReason.CANCEL:
        raise StopSignal("cancelled")
    return result.exit_code or 0


def _code_of(running: asyncio.Task[ProcessResult] | None) -> int | None:
    if running is None or not running.done() or running.cancelled() or running.exception() is not None:
        return None
    return running.result().exit_code


def _tell(
    registry: RunRegistry | None,
    capture: OutputCapture,
    run_id: str,
    exit_code: int | None,
    error: BaseException | None,
) -> None:
    """Write down how the run ended, whatever way that was."""
    status, message = _status(exit_code, error)
    if error is not None and message is not None:
        level = Level.WARNING if status is RunStatus.CANCELLED else Level.ERROR
        capture.append_line(run_id, message, Stream.SYSTEM, level)
    if registry is not None:
        registry.update_run(run_id, status, exit_code, message)


def _status(exit_code: int | None, error: BaseException | None) -> tuple[RunStatus, str | None]:
    if isinstance(error, (asyncio.CancelledError, StopSignal)):
        return RunStatus.CANCELLED, "cancelled"
    if error is not None:
        return RunStatus.FAILED, str(error) or type(error).__name__
    if exit_code:
        return RunStatus.FAILED, f"exit code {exit_code}"
    return RunStatus.COMPLETED, None
