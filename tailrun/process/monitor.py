"""Monitors one subprocess: forwards its output, handles stop requests, returns its result.

It is the same for a worker's tool under its guard (`app/execution/process.py`) and for a program in a
user's own process (`tailrun/capture/process.py`): they differ in what holds the program, a `RunningProgram`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tailrun.process import errors, guard
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Level, Line, LineSink, Stream
from tailrun.process.pipes import Pipe, Pump
from tailrun.process.stop import ProcessResult, StopReason, StopToken, Usage

_LEFTOVERS_S = 0.5
"""How long a tool's leftovers may keep running (`cmd > >(tee log)`), not counting a slow sink."""
SWEPT = "stopped what was left in the background, for a step's programs end with it"
"""How the line begins that names what was ended after its program."""
_ORPHANED_PIPE_S = 0.5
"""How long more is waited for at a pipe that a process outside of the tool's tree holds open."""
_WITH_GRACE = frozenset({StopReason.CANCEL, StopReason.TIMEOUT})


class RunningProgram(Protocol):
    """A started program and what holds it; commands and reports are those of `guard.py`."""

    pid: int | None
    """The program's process id, once it runs; its process group has the same number."""

    @property
    def pipes(self) -> Mapping[Stream, Pipe]: ...

    @property
    def report(self) -> Mapping[str, Any]:
        """The state so far."""
        ...

    @property
    def gone(self) -> bool:
        """Whether nothing of it is left."""
        ...

    def listen(self, changed: Callable[[], None]) -> None:
        """Keep `report` up to date from now on; call `changed` after each change."""
        ...

    def say(self, word: bytes) -> None:
        """Ask for one of TERMINATE, KILL, FINISH; never blocks."""
        ...


class ProcessMonitor:
    """Monitors one program. `command` is what was started, for the message of a failure."""

    def __init__(
        self, program: RunningProgram, command: errors.Command, sink: LineSink, stop: StopToken
    ) -> None:
        self._program, self._command, self._sink, self._stop = program, command, sink, stop
        self._pump = Pump(program.pipes, sink)
        self._timed_out = False
        self._finish_at: float | None = None
        self._leave_at: float | None = None

    async def run(self, timeout_s: float | None) -> ProcessResult:
        """Hand all lines to the sink and return how the program ended.

        Raises:
            RunFailure: it never ran, or what held it was killed.
        """
        self._program.listen(self._changed)
        obeying = asyncio.create_task(self._obey())
        timer = None
        if timeout_s is not None:
            timer = asyncio.get_running_loop().call_later(timeout_s, self._time_out)
        try:
            await self._pump.run(self._pause)
        finally:
            obeying.cancel()
            if timer is not None:
                timer.cancel()
        return await self._result()

    def _changed(self) -> None:
        report, now = self._program.report, self._pump.clock()
        self._program.pid = report.get("started")
        if "exited" in report and self._finish_at is None:
            self._finish_at = now + _LEFTOVERS_S
        if self._program.gone:
            self._leave_at = now + _ORPHANED_PIPE_S
        self._pump.wake()

    def _pause(self) -> float | None:
        """Return when to look again; negative when all is over. Time spent in the sink does not count."""
        now = self._pump.clock()
        if self._leave_at is not None:
            over = self._pump.ended or (now >= self._leave_at and self._pump.read_rest())
            return -1 if over else max(0.0, self._leave_at - now)
        if self._finish_at is None:
            return None
        if now >= self._finish_at:
            self._program.say(guard.FINISH)
            self._finish_at = float("inf")
        return None if self._finish_at == float("inf") else self._finish_at - now

    async def _obey(self) -> None:
        """Pass on the request to stop; what began with a grace can still become a kill."""
        reason = await self._stop.wait()
        if reason in _WITH_GRACE:
            self._program.say(guard.TERMINATE)
            await self._stop.lost()
        self._program.say(guard.KILL)

    def _time_out(self) -> None:
        self._timed_out = True
        self._program.say(guard.TERMINATE)

    async def _result(self) -> ProcessResult:
        report = self._program.report
        if "failed" in report:
            raise errors.of_tool(report["failed"], report["at"], self._command)
        if "exited" not in report:
            raise RunFailure(
                ErrorCode.EXECUTOR_UNAVAILABLE,
                "The process that guards the program was killed, and the program with it.",
            )
        if report.get("swept"):
            more = f" and {report['more']} more" if report["more"] else ""
            text = f"{SWEPT}: {'; '.join(report['swept'])}{more}"
            await self._sink([Line(Stream.SYSTEM, text, Level.WARNING)])
        if report.get("left"):
            text = "Some processes of this program could not be killed and may still run."
            await self._sink([Line(Stream.SYSTEM, text, Level.WARNING)])
        usage = Usage(report.get("cpu_s", 0.0), report["wall_s"], report.get("max_rss", 0))
        return ProcessResult(report["exited"], report["signal"], self._stopped(report["asked"]), usage)

    def _stopped(self, asked: str) -> StopReason | None:
        """Why the program was being stopped when it ended; None if it ended by itself."""
        if asked == "lease":
            return StopReason.LOST
        if asked not in ("request", "grace"):
            return None
        if self._stop.reason is not None:
            return self._stop.reason
        return StopReason.TIMEOUT if self._timed_out else StopReason.DRAIN
