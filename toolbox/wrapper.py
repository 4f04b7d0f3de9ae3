"""`toolbox exec`: runs one program, and turns what it prints into frames.

One thread and one poll, and nothing else in it ever blocks. While stdout takes nothing the
program's pipes stay unread: a slow reader slows the program down instead of filling our memory,
and signals and time limits still hold. What comes when all is quiet goes out at once; what piles
up while there is much to do goes out as one batch.

    wait for the workspace ──> start ──> read, frame, write ──> the program's end ──> exit frame
          SIGTERM, SIGINT, the time limit: a signal to the group, and SIGKILL after the grace
"""

from __future__ import annotations

import os
import select
import time

from toolbox.frames import Frames, Stream
from toolbox.output import STDOUT, Output, open_standard_streams
from toolbox.program import Program, StartFailed
from toolbox.settings import ToolboxSettings, for_the_program
from toolbox.signals import SIGCHLD, SIGCONT, SIGINT, SIGKILL, SIGTERM, signal_pipe

NOT_READY = 125
"""Exit code where the program was not even tried: no workspace."""

_READ_BYTES = 65_536
_LAST_READ_BYTES = 1 << 20  # the most that an unprivileged user's pipe holds
_HELD_S = 0.2
_LOOK_S = 0.004
_LINGER_S = 1.0
_NAMED = 5
_LONGEST_POLL_MS = 1e9  # poll takes no more than an int
_FOREVER = float("inf")


class Wrapper:
    """One run of one program."""

    def __init__(self, argv: list[str], settings: ToolboxSettings) -> None:
        open_standard_streams()
        self._argv = argv
        self._settings = settings
        self._frames = Frames()
        self._output = Output()
        self._both = (Stream(self._frames, "o"), Stream(self._frames, "e"))
        self._open: dict[int, Stream] = {}
        self._due: dict[str | int, float] = {}
        self._alarms = signal_pipe(SIGTERM, SIGINT, SIGCHLD)
        self._reading, self._stuck = select.poll(), select.poll()
        self._reading.register(self._alarms, select.POLLIN)
        self._stuck.register(self._alarms, select.POLLIN)
        self._stuck.register(STDOUT, select.POLLOUT)
        self._program: Program | None = None
        self._started_us = 0
        self._stopped_by = 0
        self._timed_out = False

    def run(self) -> int:
        """Wait, start, follow; return the exit code. The exit frame is the last thing written."""
        code = self._await_workspace() or self._start()
        while self._program is not None and (self._open or self._program.status is None):
            self._turn()
        if self._program is not None:
            code = self._program.code
        self._say_end(code)
        while self._output.waiting:
            self._turn()
        return code

    def _await_workspace(self) -> int:
        """Return 0 once the files are there."""
        ready = self._settings.wait
        failed = f"{ready.rpartition('/')[0]}/failed"
        while ready and not _exists(ready):
            if _exists(failed):
                self._frames.say("failed", _beginning_of(failed))
                return NOT_READY
            self._turn(_LOOK_S)
            if self._stopped_by:
                return 128 + self._stopped_by
        if ready:
            self._frames.say("synced", "")
        return 0

    def _start(self) -> int:
        """Return 0 once the program runs."""
        out, err = os.pipe(), os.pipe()
        try:
            os.chdir(self._settings.cwd)
            self._program = Program(self._argv, for_the_program(), stdout=out[1], stderr=err[1])
        except StartFailed as error:
            self._frames.say("failed", str(error))
            return error.code
        except OSError as error:
            self._frames.say("failed", f"{self._settings.cwd}: {error.strerror}")
            return NOT_READY
        self._started_us = _now_us()
        self._due["timeout"] = time.monotonic() + self._settings.timeout_s
        for (ours, theirs), stream in zip((out, err), self._both, strict=True):
            os.close(theirs)
            self._reading.register(ours, select.POLLIN)
            self._open[ours] = stream
        return 0

    def _turn(self, at_most_s: float = _FOREVER) -> None:
        """Wait for something to happen, deal with all of it, and write what came of it."""
        poll = self._stuck if self._output.waiting else self._reading
        for fd, _ in poll.poll(self._patience_ms(at_most_s)):
            if fd == STDOUT:
                self._output.write_some()
            elif fd == self._alarms:
                self._listen()
            else:
                self._read(fd, _READ_BYTES)
        self._keep_time()
        if not self._output.waiting:
            self._output.put(self._frames.take())
            self._write_what_fits()

    def _write_what_fits(self) -> None:
        """Write on while stdout takes it: most of the time that is everything."""
        while self._output.waiting and STDOUT in dict(self._stuck.poll(0)):
            self._output.write_some()

    def _read(self, fd: int, size: int) -> None:
        stream, data = self._open[fd], os.read(fd, size)
        if not data:
            self._close(fd)
        elif stream.feed(data, _now_us()):
            self._due[fd] = time.monotonic() + _HELD_S
        elif not stream.held:
            self._due.pop(fd, None)

    def _close(self, fd: int) -> None:
        self._open.pop(fd).end(_now_us())
        self._due.pop(fd, None)
        self._reading.unregister(fd)
        os.close(fd)

    def _listen(self) -> None:
        """Obey the signals that came."""
        for number in os.read(self._alarms, 4096):
            if number != SIGCHLD:
                self._stop(number)
        if self._program is not None:
            running = self._program.status is None
            self._program.reap()
            if running and self._program.status is not None:
                self._due.pop("timeout")
                self._due.pop("kill", None)
                self._due["leave"] = time.monotonic() + _LINGER_S
                if self._program.left_behind and not self._stopped_by:
                    self._frames.say("stopped", _named(self._program.left_behind))

    def _stop(self, number: int) -> None:
        """Pass a signal on; the grace begins with the first."""
        self._stopped_by = self._stopped_by or number
        if self._program is not None and self._program.status is None:
            self._due.setdefault("kill", time.monotonic() + self._settings.grace_s)
            self._program.kill(number)
            self._program.kill(SIGCONT)

    def _patience_ms(self, at_most_s: float) -> float | None:
        soonest = min((self._due[what] for what in self._actions()), default=_FOREVER)
        wait_s = min(soonest - time.monotonic(), at_most_s)
        return None if wait_s == _FOREVER else min(max(0.0, wait_s * 1000), _LONGEST_POLL_MS)

    def _actions(self) -> list[str | int]:
        """Return what may fall due; nothing is read or sent while the reader is not ready."""
        return [what for what in self._due if what in {"timeout", "kill"} or not self._output.waiting]

    def _keep_time(self) -> None:
        now = time.monotonic()
        for what in [what for what in self._actions() if now >= self._due[what]]:
            self._due[what] = _FOREVER
            if what == "timeout":
                self._timed_out = True
                self._stop(SIGTERM)
            elif what == "kill" and self._program is not None:
                self._program.kill(SIGKILL)
            elif what == "leave":
                self._leave_pipes()
            elif what in self._open:
                self._open[what].flush(_now_us())

    def _leave_pipes(self) -> None:
        """Read what the program left in its pipes; leave them to escaped processes that still hold them."""
        for fd in list(self._open):
            os.set_blocking(fd, False)
            try:  # noqa: SIM105 - contextlib costs 3 ms of start-up
                self._read(fd, _LAST_READ_BYTES)
            except BlockingIOError:
                pass  # there was nothing
            if fd in self._open:
                self._close(fd)

    def _say_end(self, code: int) -> None:
        program = self._program
        lines, size = (sum(part) for part in zip(*((s.lines, s.bytes) for s in self._both), strict=True))
        signal = (program.signal if program else self._stopped_by) or "null"
        cpu_s, max_rss = (program.cpu_s, program.max_rss) if program else (0.0, 0)
        self._frames.add(
            f'"x":{{"code":{code},"signal":{signal},"lines":{lines},"bytes":{size},"cpu_s":{cpu_s:.6f}'
            f',"max_rss":{max_rss},"started":{self._started_us}'
            + (',"timeout":true}' if self._timed_out else "}")
        )
        self._turn(0)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return "; ".join(names[:_NAMED]) + more


def _exists(path: str) -> bool:
    return os.access(path, os.F_OK)


def _beginning_of(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs 8 ms of start-up
        return file.read(2000).decode(errors="replace")


def _now_us() -> int:
    return time.time_ns() // 1000
