"""Supervision of child processes: start, start again with backoff, stop in order.

One thread and no event loop: a fork from one thread is safe, and the parent-death signal
means the thread that forked. Children get a session of their own, so that Ctrl-C in the
terminal reaches only the supervisor, which then stops them one after the other.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Self

from app.core.parent_death import RETIRE, ROOT, bound_to_parent, ignore, tie

HEALTHY_S = 10.0
"""A child that ran so long has recovered: its next restart is quick again."""
MAX_BACKOFF_S = 10.0
_DOUBLINGS = 6
"""Behind so many the pause is the longest one; a child that dies for days must not overflow it."""
LOG_MAX_BYTES = 20_000_000

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One program to keep running. `log` None: it writes where the supervisor writes.

    `death_signal` is what it gets when the supervisor is killed; `stop_s` how long it may
    take to end after SIGTERM. What has a higher `stage` is stopped first.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path | None = None
    death_signal: signal.Signals = signal.SIGKILL
    stop_s: float = 10.0
    stage: int = 0
    inherit: tuple[int, ...] = ()


@dataclass(slots=True)
class Child:
    """A program and its present process, if it has one."""

    spec: ChildSpec
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    due: float = 0.0
    keep: bool = True
    exit_code: int | None = None


@dataclass(slots=True)
class Supervisor:
    """Restarts children until a stop is requested. Use within `with`."""

    say: Say
    each_tick: Callable[[], None] = lambda: None
    tick_s: float = 0.2
    children: list[Child] = field(default_factory=list[Child])
    stops: int = 0
    launcher: int | None = None
    """The read end of a pipe that closes when whoever launched us in the foreground is gone."""
    retires: bool = False
    """Whether RETIRE is passed on to the children, which then end by themselves, and `run` with them."""
    _retiring: bool = False
    _wake: tuple[int, int] = (-1, -1)
    _parent_pipe: tuple[int, int] = (-1, -1)
    _handlers: dict[int, object] = field(default_factory=dict[int, object])

    def __enter__(self) -> Self:
        self._wake = os.pipe()
        self._parent_pipe = os.pipe()
        os.set_blocking(self._wake[1], False)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup
                self._handlers[signum] = signal.signal(signum, self._on_stop)
        if self.retires:
            self._handlers[RETIRE] = signal.signal(RETIRE, self._on_retire)
        self._handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, ignore)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()
        signal.set_wakeup_fd(-1)
        for signum, handler in self._handlers.items():
            asked = self.stops and signum != signal.SIGCHLD  # one more signal must not spoil the exit code
            signal.signal(signum, signal.SIG_IGN if asked else handler)  # pyright: ignore[reportArgumentType]
        for fd in (*self._wake, *self._parent_pipe):
            os.close(fd)

    def start(self, spec: ChildSpec, *, keep: bool = True) -> Child:
        """Start a program; `keep`: start it again whenever it ends."""
        child = Child(spec, keep=keep)
        self.children.append(child)
        self._spawn(child)
        return child

    def run(self) -> None:
        """Keep everything running until a signal asks to stop, or until all have retired."""
        while not self.stops and not (self._retiring and not any(child.process for child in self.children)):
            self.tick(self.tick_s)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Keep everything running until `condition`; False on time-out or when asked to stop."""
        deadline = time.monotonic() + timeout_s
        while not self.stops and time.monotonic() < deadline:
            if condition():
                return True
            self.tick(0.03)
        return False

    def tick(self, timeout_s: float) -> None:
        """Restart what has ended, then sleep until something happens."""
        now = time.monotonic()
        if self._retiring:
            self._retire()
        for child in self.children:
            if child.process is not None and child.process.poll() is not None:
                self._ended(child, child.process.returncode, now)
            if child.process is None and child.keep and child.due <= now:
                self._spawn(child)
        self.each_tick()
        self._sleep(timeout_s)

    def stop_all(self) -> None:
        """Stop the children, stage by stage; a second signal kills what is being stopped."""
        for stage in sorted({child.spec.stage for child in self.children}, reverse=True):
            self._stop([child for child in self.children if child.spec.stage == stage])
        self.children.clear()
        self.each_tick()

    def _retire(self) -> None:
        """Pass RETIRE on, once to each child; none is started again."""
        for child in self.children:
            if child.keep and child.process is not None:
                child.process.send_signal(RETIRE)
            child.keep = False

    def _stop(self, children: Sequence[Child]) -> None:
        now, asked = time.monotonic(), self.stops
        for child in children:
            child.keep = False
            if child.process is not None:
                child.process.terminate()
        while running := [child for child in children if child.process and child.process.poll() is None]:
            for child in running:
                if time.monotonic() - now > child.spec.stop_s or self.stops > max(asked, 1):
                    self._kill(child)
            self.each_tick()
            self._sleep(0.05)

    def _kill(self, child: Child) -> None:
        if child.process is not None:
            self.say(f"{child.spec.name} did not end in time: killed")
            child.process.kill()
            child.process.wait()

    def _spawn(self, child: Child) -> None:
        """Start a child; one that is kept is tried again where this machine can't just now."""
        child.started_at = time.monotonic()
        try:
            child.process = self._popen(child.spec)
        except (OSError, MemoryError, subprocess.SubprocessError) as error:
            if not child.keep:
                raise
            self._failed(child, f"could not be started ({error})", child.started_at)

    def _popen(self, spec: ChildSpec) -> subprocess.Popen[bytes]:
        argv, tie_to_me, inherit = list(spec.argv), None, spec.inherit
        if sys.platform == "linux":
            tie_to_me = tie(spec.death_signal)
        else:
            argv, inherit = (
                bound_to_parent(argv, spec.death_signal, self._parent_pipe[0]),
                (*inherit, self._parent_pipe[0]),
            )
        log = None if spec.log is None else os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return subprocess.Popen(
                argv,
                env=dict(spec.env) | {"PYTHONPATH": ROOT},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=inherit,
                start_new_session=True,
                preexec_fn=tie_to_me,  # noqa: PLW1509 - this process has one thread
            )
        finally:
            if log is not None:
                os.close(log)

    def _ended(self, child: Child, code: int, now: float) -> None:
        child.process, child.exit_code = None, code
        if child.keep:
            child.failures = 0 if now - child.started_at > HEALTHY_S else child.failures
            self._failed(child, _how(code), now)

    def _failed(self, child: Child, how: str, now: float) -> None:
        delay = min(0.25 * 2 ** min(child.failures, _DOUBLINGS), MAX_BACKOFF_S)
        child.failures += 1
        child.due = now + delay
        where = f"; its output is in {child.spec.log}" if child.spec.log is not None else ""
        self.say(f"{child.spec.name} {how}; starting it again in {delay:g} s{where}")

    def _sleep(self, timeout_s: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake[0], selectors.EVENT_READ)
            if self.launcher is not None:
                selector.register(self.launcher, selectors.EVENT_READ)
            for key, _ in selector.select(timeout_s):
                if not os.read(key.fd, 512):  # only the launcher's pipe ever ends
                    self.launcher = None
                    self.stops += 1

    def _on_stop(self, signum: int, frame: FrameType | None) -> None:
        self.stops += 1

    def _on_retire(self, signum: int, frame: FrameType | None) -> None:
        self._retiring = True


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # one of the real-time signals between the first and the last has no name
        return f"was killed by signal {-code}"


class LogTail:
    """Hands over the lines that a child adds to its log file, and keeps the file bounded."""

    def __init__(self, path: Path, sink: Callable[[str], None]) -> None:
        self._path = path
        self._sink = sink
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def pump(self) -> None:
        """Hand over what is new, at most 64 KiB of it."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                self._offset = min(self._offset, size)
                file.seek(self._offset)
                piece = file.read(65_536)
        except FileNotFoundError:
            return
        self._offset += len(piece)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._sink(line.decode(errors="replace"))
        if size > LOG_MAX_BYTES and self._offset == size:
            self._rotate()

    def _rotate(self) -> None:
        """Keep one older file, if there is space; children append, so cutting the file is safe for them."""
        older = self._path.with_name(self._path.name + ".1")
        try:
            shutil.copyfile(self._path, older)
        except OSError as error:
            self._sink(f"older lines of {self._path} are dropped, they can't be kept: {error}")
            with suppress(OSError):  # the user was told above that nothing is kept
                older.unlink()
        os.truncate(self._path, 0)
        self._offset = 0


def last_lines(path: Path, count: int = 15) -> str:
    """Return the end of a log file, for a message."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return ""
