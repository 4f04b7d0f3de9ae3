"""What one program of a local tool may use, and how it shows that it wanted more.

The kernel holds the limits (setrlimit, set by the guard's child before it becomes the program), for
each process by itself: a tool that starts ten has ten times the memory. Over CPU time and file size
the kernel sends a signal; over address space an allocation fails, and only the program's own last
words can tell.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Line, LineSink, Stream
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
