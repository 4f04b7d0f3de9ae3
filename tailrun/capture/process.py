"""Runs a program directly under this process: for programs that use Tailrun as a library.

There is no guard: when this process is killed, the program lives on, as with `subprocess`. What a
worker needs beyond that, `process.py` has. asyncio's subprocess transports start the program and
deliver its output, so that this works wherever asyncio does; only how a whole group is signalled
differs: a process group on POSIX, `taskkill /T` on Windows.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tailrun.process import errors, guard
from tailrun.process.lines import LineSink, Stream
from tailrun.process.monitor import ProcessMonitor
from tailrun.process.pipes import DeliveredPipe
from tailrun.process.stop import ProcessResult, StopToken

_SWEEP_S = 0.5
"""Between SIGTERM and SIGKILL for what the program left behind."""
_GIVE_UP_S = 5.0
"""How long what can't be killed (another user's, or stuck in the kernel) is waited for."""
_TICK_S = 0.02
_WINDOWS = sys.platform == "win32"


@dataclass(frozen=True, slots=True)
class DirectCommand:
    """The program to run; `env` is the whole environment."""

    argv: tuple[str, ...]
    cwd: Path
    env: dict[str, str]


async def run_direct(
    command: DirectCommand,
    sink: LineSink,
    stop: StopToken,
    *,
    grace_s: float = 5,
    timeout_s: float | None = None,
) -> ProcessResult:
    """Run `command` to its end and hand its lines to `sink`; what it left behind is ended then.

    A stop with a reason that has a grace is SIGTERM to the group, and `grace_s` later SIGKILL. If
    the calling task is cancelled, or `sink` raises, the group is killed at once.

    Raises:
        RunFailure: the program never ran.
    """
    program = await _Direct.start(command, grace_s)
    try:
        return await ProcessMonitor(program, command, sink, stop).run(timeout_s)
    finally:
        await program.close()


class _Direct(asyncio.SubprocessProtocol):
    """One program and its process group. Implements `tailrun.process.monitor.Program`."""

    def __init__(self, grace_s: float) -> None:
        self.pid: int | None = None
        self.pipes = {Stream.STDOUT: DeliveredPipe(), Stream.STDERR: DeliveredPipe()}
        self.report: dict[str, Any] = {}
        self._by_fd: dict[int, DeliveredPipe] = dict(enumerate(self.pipes.values(), 1))
        self._grace_s = grace_s
        self._loop = asyncio.get_running_loop()
        self._started_at = time.monotonic()
        self._transport: asyncio.SubprocessTransport | None = None
        self._closed = self._loop.create_future()
        self._changed: Callable[[], None] = _nothing
        self._asked_by = ""
        self._kill_timer: asyncio.TimerHandle | None = None
        self._killed_at: float | None = None
        self._watching: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, command: DirectCommand, grace_s: float) -> _Direct:
        loop = asyncio.get_running_loop()
        if not command.cwd.is_dir():
            raise errors.of_tool(_errno_of(command.cwd), "chdir", command)
        try:
            _, program = await loop.subprocess_exec(
                lambda: cls(grace_s),
                *command.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=command.cwd,
                env=command.env,
                **_own_group(),
            )
        except OSError as error:
            raise errors.of_tool(error.errno or 0, "exec", command) from error
        except ValueError as error:
            raise errors.of_text(error) from error
        return program

    # -- what asyncio calls -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        process = cast("asyncio.SubprocessTransport", transport)  # uvloop's is one by its methods only
        self._transport, self.pid = process, process.get_pid()
        self.report["started"] = self.pid
        for fd, pipe in self._by_fd.items():
            pipe.open(cast("asyncio.ReadTransport", process.get_pipe_transport(fd)))

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        assert isinstance(data, bytes)  # noqa: S101 - asyncio's pipes are binary
        self._by_fd[fd].deliver(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd in self._by_fd:
            self._by_fd[fd].end()

    def process_exited(self) -> None:
        assert self._transport is not None  # noqa: S101 - made before
        code = self._transport.get_returncode() or 0
        self.report |= {
            "exited": code if code >= 0 else 128 - code,
            "signal": -code if code < 0 else None,
            "asked": self._asked_by,
            "wall_s": time.monotonic() - self._started_at,
        }
        if self._asked_by:
            self._sweep()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    # -- what the attendance calls ------------------------------------------------------

    @property
    def gone(self) -> bool:
        return "gone" in self.report

    def listen(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        changed()

    def say(self, word: bytes) -> None:
        if word == guard.KILL:
            self._kill("request")
        elif word == guard.TERMINATE:
            self._terminate()
        elif word == guard.FINISH and "exited" in self.report:
            if not self.gone:
                self.report |= {"swept": [f"process group {self.pid}"], "more": 0}
            self._sweep()

    async def close(self) -> None:
        """Kill what is left, wait for its end, close the pipes and reap the process."""
        if "exited" not in self.report or not self.gone:
            self._kill("request")
        if self._transport is not None:
            self._transport.close()
            await self._closed
        while not self.gone:
            self._look()
            await asyncio.sleep(0 if self.gone else _TICK_S)
        for timer in (self._kill_timer, self._watching):
            if timer is not None:
                timer.cancel()

    # -- the group ----------------------------------------------------------------------

    def _terminate(self) -> None:
        if self._asked_by or self._killed_at is not None:
            return
        self._asked_by = "request"
        self._kill_timer = self._loop.call_later(self._grace_s, self._kill, "grace")
        self._signal(kill=False)

    def _sweep(self) -> None:
        """End what outlived the program."""
        if self._killed_at is None:
            if self._kill_timer is not None:
                self._kill_timer.cancel()
            self._kill_timer = self._loop.call_later(_SWEEP_S, self._kill, self._asked_by)
            self._signal(kill=False)
            self._look()

    def _kill(self, by: str) -> None:
        if self._killed_at is None:
            self._asked_by = self._asked_by or by
            self._killed_at = time.monotonic()
        self._signal(kill=True)
        self._look()

    def _signal(self, *, kill: bool) -> None:
        if self.pid is not None and not self.gone:
            (_signal_windows if _WINDOWS else _signal_group)(self.pid, kill=kill)

    def _look(self) -> None:
        """Once the program has ended: check its process group again until it is empty."""
        if "exited" not in self.report or self.gone or self.pid is None:
            self._changed()
            return
        stuck = self._killed_at is not None and time.monotonic() > self._killed_at + _GIVE_UP_S
        if stuck or not _group_lives(self.pid):
            self.report |= {"gone": True, "left": stuck}
        elif self._watching is None:
            self._watching = self._loop.call_later(_TICK_S, self._look_again)
        self._changed()

    def _look_again(self) -> None:
        self._watching = None
        if self._killed_at is not None:
            self._signal(kill=True)
        self._look()


def _nothing() -> None:
    """No listener yet."""


def _errno_of(folder: Path) -> int:
    """Return why a folder can't be entered."""
    try:
        os.listdir(folder)  # noqa: PTH208 - for its error
    except OSError as error:
        return error.errno or 0
    return 0


def _own_group() -> dict[str, Any]:
    """Start the program where signals to it reach its children, and no other process."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _signal_group(group: int, *, kill: bool) -> None:
    if sys.platform != "win32":
        try:
            os.killpg(group, signal.SIGKILL if kill else signal.SIGTERM)
            if not kill:
                os.killpg(group, signal.SIGCONT)  # a stopped one would not hear it
        except (ProcessLookupError, PermissionError):
            return


def _signal_windows(pid: int, *, kill: bool) -> None:
    if sys.platform == "win32":
        if kill:
            taskkill = ["taskkill", "/T", "/F", "/PID", str(pid)]
            subprocess.run(taskkill, capture_output=True, check=False, timeout=10)
        else:
            try:
                os.kill(pid, signal.CTRL_BREAK_EVENT)
            except OSError:  # no console, or gone: the kill comes after the grace
                return


def _group_lives(group: int) -> bool:
    """Whether a process of the group runs: one that is dead and not yet collected does not count."""
    if sys.platform == "win32":
        return False
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    members = [_state_and_group(name) for name in _processes()]
    return any(of == group and state not in ("Z", "X") for state, of in members) or not members


def _processes() -> list[str]:
    try:
        return [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names only
    except OSError:
        return []


def _state_and_group(pid: str) -> tuple[str, int]:
    try:
        fields = Path("/proc", pid, "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return "X", 0
    return fields[0].decode(), int(fields[2])


def inherited_env(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment, Python's output unbuffered and in UTF-8, and `extra`."""
    python = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    return {**os.environ, **python, **extra}
