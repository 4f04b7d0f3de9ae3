"""The worker's end of one guard: starts it, sends its commands and limits, reads its reports.

Owns the four pipes between the worker, the guard and the tool, and the guard's process entry,
and closes them. The commands are described in `guard.py`.

The kernel holds the limits (setrlimit, set by the guard's child before it becomes the program), for
each process by itself: a tool that starts ten has ten times the memory. Over CPU time and file size
the kernel sends a signal; over address space an allocation fails, and only the program's last lines tell.

Where the guard itself was killed, by the kernel short of memory or from outside, the tool's main program
dies with it, but its descendants do not. They are found by what they inherited: the tool's own temporary
folder in their environment, a name that no other program has. A program that emptied its environment and
left the process group escapes; only a living guard sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import error as StructError  # noqa: N812 - `error` is too general a name here
from struct import unpack
from typing import Any

import orjson

from tailrun.process import guard
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Line, LineSink, Stream
from tailrun.process.pipes import FdPipe
from tailrun.process.stop import ProcessResult

_SIGKILL, _SIGXCPU, _SIGXFSZ = 9, 24, 25
_LAST_LINES = 50
_NO_MEMORY = (
    *("memoryerror", "cannot allocate memory", "bad_alloc", "out of memory", "outofmemory"),
    *("memory allocation of", "memory exhausted", "failed to map segment"),
)
_TOO_LARGE = ("file too large", "filesize limit exceeded", "file size limit exceeded")


@dataclass(frozen=True, slots=True)
class ProgramLimits:
    """Of each process: CPU time in seconds, address space and one file's size in bytes; 0: no limit."""

    cpu_s: int = 0
    memory_bytes: int = 0
    file_bytes: int = 0

    def encode(self) -> str:
        """Return them as the guard reads them."""
        return f"{self.cpu_s} {self.memory_bytes} {self.file_bytes}"

    def __bool__(self) -> bool:
        return any((self.cpu_s, self.memory_bytes, self.file_bytes))


NO_LIMITS = ProgramLimits()


class LimitWatch:
    """A sink that remembers a program's last words on the way to another sink."""

    def __init__(self, limits: ProgramLimits, sink: LineSink) -> None:
        self._limits, self._sink = limits, sink
        self._words: deque[str] = deque(maxlen=_LAST_LINES)

    async def __call__(self, lines: Sequence[Line], /) -> None:
        """Pass lines on."""
        self._words.extend(line.content for line in lines if line.stream is Stream.STDERR)
        await self._sink(lines)

    async def gap(self, lost: int, why: str) -> None:
        """Pass a gap on."""
        await self._sink.gap(lost, why)

    def failure(self, result: ProcessResult) -> RunFailure | None:
        """Return which limit ended the program, if that can be known; another attempt would meet it too."""
        what = self._over(result) if result.exit_code and result.stopped is None else None
        if what is None:
            return None
        text = f"a program of this step went over its limit of {what}"
        return RunFailure(ErrorCode.RESOURCE_LIMIT, text, exit_code=result.exit_code, retried=False)

    def _over(self, result: ProcessResult) -> str | None:
        limits, code = self._limits, result.exit_code
        cpu_s = result.usage.cpu_s if result.usage is not None else 0
        killed = code == 128 + _SIGKILL and cpu_s >= limits.cpu_s
        if limits.cpu_s and (code == 128 + _SIGXCPU or killed):
            return f"{limits.cpu_s} s of CPU time (TOOL_CPU_S)"
        if limits.file_bytes and (code == 128 + _SIGXFSZ or self._said(_TOO_LARGE)):
            return f"{limits.file_bytes} bytes a file (TOOL_FILE_MAX_BYTES)"
        if limits.memory_bytes and self._said(_NO_MEMORY):
            return f"{limits.memory_bytes} bytes of memory (TOOL_MEMORY_BYTES)"
        return None

    def _said(self, phrases: Sequence[str]) -> bool:
        words = "\n".join(self._words).lower()
        return any(phrase in words for phrase in phrases)


_PIPE_BYTES = 256 * 1024
_NAMED, _NAME_CHARS = 5, 100
"""Of the programs that are ended after a tool."""
_CLOSE_S = 10.0
"""Longer than a guard tries to end what can't be ended."""


@dataclass(frozen=True, slots=True)
class Request:
    """The program that a guard runs. Times in seconds."""

    argv: tuple[str, ...]
    cwd: Path
    env: dict[str, str]
    tmp: Path
    lease_s: float
    grace_s: float
    limits: ProgramLimits = NO_LIMITS

    def encode(self) -> bytes:
        """Return the request as the guard reads it."""
        fields = [str(self.cwd), str(self.lease_s), str(self.grace_s), self.limits.encode()]
        fields += [str(len(self.argv)), *self.argv]
        fields += [f"{name}={value}" for name, value in self.env.items()]
        body = os.fsencode("\0".join(fields))
        return b"%d\n" % len(body) + body


class GuardClient:
    """One tool under its guard. Made by `start`, ended by `close`; `say` may come from any thread."""

    def __init__(
        self, process: subprocess.Popen[bytes], control: int, status: int, out: int, err: int
    ) -> None:
        self.outputs = {Stream.STDOUT: out, Stream.STDERR: err}
        self.pipes = {stream: FdPipe(fd) for stream, fd in self.outputs.items()}
        self.started_at = time.monotonic()
        self.pid: int | None = None
        """The tool's process id, once it runs; its process group has the same number."""
        self.report: dict[str, Any] = {}
        """The guard's reports so far."""
        self._process = process
        self._control: int | None = control
        self._status = status
        self._heard = b""
        self._lock = threading.Lock()

    @classmethod
    def start(cls, request: Request, name: str) -> GuardClient:
        """Start a guard and hand it the request; blocks for some milliseconds. `name` is for `ps`.

        Raises:
            OSError: no process or pipe could be made.
            UnicodeEncodeError: the request holds text that no program can be given.
        """
        raw = request.encode()
        ours, theirs = list[int](), list[int]()
        try:
            for end_is_ours in (0, 0, 0, 1):  # stdout, stderr, status: we read; control: we write
                ends = os.pipe()
                ours.append(ends[end_is_ours])
                theirs.append(ends[1 - end_is_ours])
            out, err, status, control = ours
            process = subprocess.Popen(  # noqa: S603, RUF100
                [sys.executable, "-I", "-S", _script(), str(theirs[2]), str(request.tmp), name],
                stdin=theirs[3],
                stdout=theirs[0],
                stderr=theirs[1],
                pass_fds=(theirs[2],),
                env={},
                start_new_session=True,
            )
            self = cls(process, control, status, out, err)
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self._send_request(raw)
        return self

    def _send_request(self, raw: bytes) -> None:
        assert self._control is not None  # noqa: S101 - only `close` takes it away
        left = memoryview(raw)
        with contextlib.suppress(BrokenPipeError):  # its status pipe ends without a report
            while left:
                left = left[os.write(self._control, left) :]
        for fd in (self._control, self._status, *self.outputs.values()):
            os.set_blocking(fd, False)
        for fd in self.outputs.values():
            _enlarge(fd)

    def say(self, word: bytes) -> None:
        """Send one command; never blocks, and does nothing for a guard that is gone."""
        if word == guard.FINISH:
            names = [name for name in map(_command_line, guard.descendants(self._process.pid)) if name]
            self.report |= {"swept": names[:_NAMED], "more": len(names[_NAMED:])}
        with self._lock:
            if self._control is not None:
                with contextlib.suppress(BlockingIOError, BrokenPipeError):
                    os.write(self._control, word)

    def heartbeat(self) -> None:
        """Say that the worker still owns the run, and wake a guard that a program has stopped."""
        self.say(guard.HEARTBEAT)
        self._process.send_signal(signal.SIGCONT)

    def listen(self, changed: Callable[[], None]) -> None:
        """Keep `report` up to date from now on; calls `changed` after each change."""
        asyncio.get_running_loop().add_reader(self._status, self._hear, changed)

    @property
    def gone(self) -> bool:
        """Whether the guard has closed its status pipe: nothing of the tool is left."""
        return "gone" in self.report

    def _hear(self, changed: Callable[[], None]) -> None:
        data = os.read(self._status, 4096)
        if not data:
            self.report["gone"] = True
            asyncio.get_running_loop().remove_reader(self._status)
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self.report.update(orjson.loads(line))
        changed()

    async def close(self) -> None:
        """Kill what is left, wait for its end, close the pipes and reap the guard."""
        with self._lock:
            if self._control is not None:
                os.close(self._control)
                self._control = None
        pause, until = 0.001, time.monotonic() + _CLOSE_S
        self._process.send_signal(signal.SIGCONT)
        while self._process.poll() is None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.02)
            if time.monotonic() >= until:  # it does not answer; the caller ends what it held
                self._process.kill()
        asyncio.get_running_loop().remove_reader(self._status)
        for fd in (self._status, *self.outputs.values()):
            os.close(fd)


def _command_line(pid: int) -> str:
    """Return the beginning of a living process's command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    text = words.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
    return text if len(text) <= _NAME_CHARS else f"{text[:_NAME_CHARS]}..."


def _script() -> str:
    """The guard's compiled file where there is one: compiling it takes as long as all the rest."""
    cached = guard.__spec__.cached if guard.__spec__ else None
    return cached if cached is not None and _is_fresh(Path(cached), Path(guard.__file__)) else guard.__file__


def _is_fresh(compiled: Path, source: Path) -> bool:
    """Whether a compiled file is of this very source: it is not renewed under PYTHONDONTWRITEBYTECODE.

    Its header (PEP 552): magic number, flags, then the source's time and size, or its hash.
    """
    try:
        with compiled.open("rb") as file:
            _, flags, time, size = unpack("<4sIII", file.read(16))
        about = source.stat()
    except (OSError, StructError):
        return False
    return flags != 0 or (time, size) == (int(about.st_mtime) & 0xFFFFFFFF, about.st_size & 0xFFFFFFFF)


def _enlarge(fd: int) -> None:
    """Let a pipe hold more than 64 KiB where the system can: fewer wake-ups for the same bytes."""
    if sys.platform == "linux":
        import fcntl  # noqa: PLC0415

        with contextlib.suppress(OSError):  # over this user's share of pipe memory
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


_GIVE_UP_S = 2.0


def kill_orphans(group: int | None, request: Request) -> None:
    """Kill the process group and all that have the request's TMPDIR, then remove it; blocks for a moment."""
    if group is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + _GIVE_UP_S
    while (left := _having(request.env["TMPDIR"])) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    shutil.rmtree(request.tmp, ignore_errors=True)


def _having(tmp: str) -> list[int]:
    """Find the processes with this TMPDIR; none where there is no /proc. The dead have no environment."""
    mark = b"TMPDIR=" + os.fsencode(tmp)
    found = list[int]()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found
