"""What the model is told of a call of a tool: how it ended, and the head and the tail of its output.

    tool ──lines──> ToolOutput ──> the run's log
                        └──> the first and the last lines, as they were written there: without secrets

The model reads text, so terminal sequences and control characters go. What is kept is bounded while it comes
in: a program may print more than there is memory for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from app.agent.tools.program import RunLog, ToolOutcome
from app.core.events import EventType
from app.core.models import StepRecord
from tailrun.ansi import harmless
from tailrun.process.errors import RunFailure
from tailrun.process.lines import Level, Line

_NAMED_FILES = 20
_RESUMED = "(Its output before another worker took over is not shown here.)"
_LEFT_OUT = "[… {} bytes of {} left out …]"


class HeadAndTail:
    """The first and the last text of an output, of `most` bytes together; whole lines where they fit."""

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._head = list[str]()
        self._tail = deque[str]()
        self._sizes = [0, 0]
        self._total = 0
        self._open = False

    def add(self, text: str, *, goes_on: bool) -> None:
        """Take a line, or a piece of one that `goes_on` in the next."""
        piece = text if goes_on else f"{text}\n"
        size = len(piece.encode())
        self._total += size
        if not self._tail and self._sizes[0] + size <= self._half:
            self._head.append(piece)
            self._sizes[0] += size
            return
        self._tail.append(piece)
        self._sizes[1] += size
        while self._sizes[1] > self._half and len(self._tail) > 1:
            self._sizes[1] -= len(self._tail.popleft().encode())

    def text(self) -> str:
        """Return what is kept, with a note of what is not."""
        tail = "".join(self._tail)
        raw = tail.encode()
        if len(raw) > self._half:  # one line alone is longer
            tail = raw[-self._half :].decode(errors="ignore")
        left_out = self._total - self._sizes[0] - len(tail.encode())
        note = f"{_LEFT_OUT.format(left_out, self._total)}\n" if left_out else ""
        return f"{''.join(self._head)}{note}{tail}".rstrip("\n")


class ToolOutput:
    """A run's log that also keeps what the step at work prints; implements `RunLog`."""

    def __init__(self, log: RunLog, most: int) -> None:
        self._log, self._most = log, most
        self._kept = HeadAndTail(most)

    def begin(self, *, resumed: bool = False) -> None:
        """Forget what was printed before; `resumed`: an earlier attempt has the beginning of this step's."""
        self._kept = HeadAndTail(self._most)
        if resumed:
            self._kept.add(_RESUMED, goes_on=False)

    def told(self, outcome: ToolOutcome, failure: RunFailure | None) -> str:
        """Return what the model is told of the step that has ended."""
        if failure is not None:
            parts = [f"Failed: {failure.message.rstrip('.')}."]
        else:
            parts = [] if outcome.exit_code is None else [f"exit code {outcome.exit_code}"]
        parts += [f"{what}: {found}" for what, found in _files(outcome)]
        shown = self._kept.text()
        return "\n".join([*parts, *([shown] if shown else [])]) or "done"

    async def lines(self, lines: Sequence[Line], step: str | None) -> Sequence[Line]:
        """As `RunLog`; updates of a progress bar are left out of what is kept."""
        written = await self._log.lines(lines, step)
        for line in written:
            if not line.cr:
                self._kept.add(harmless(line.content, colours=False), goes_on=line.split)
        return written

    async def say(self, level: Level, content: str, step: str | None = None) -> None:
        """As `RunLog`; what is said of a step is told too."""
        await self._log.say(level, content, step)
        if step is not None:
            self._kept.add(f"({content})", goes_on=False)

    async def event(
        self,
        kind: EventType,
        *,
        level: Level | None = None,
        step: str | None = None,
        content: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """As `RunLog`."""
        await self._log.event(kind, level=level, step=step, content=content, data=data)

    async def save_step(self, record: StepRecord) -> None:
        """As `RunLog`."""
        await self._log.save_step(record)

    async def source(self, step: str) -> str | None:
        """As `RunLog`."""
        return await self._log.source(step)

    async def flush(self) -> None:
        """As `RunLog`."""
        await self._log.flush()


def _files(outcome: ToolOutcome) -> list[tuple[str, str]]:
    written = [f"{file.path} ({file.size} bytes)" for file in outcome.files if file.size >= 0]
    removed = [file.path for file in outcome.files if file.size < 0]
    named = (("files written", written), ("files removed", removed))
    return [(what, _some(names)) for what, names in named if names]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED_FILES} more" if len(names) > _NAMED_FILES else ""
    return ", ".join(names[:_NAMED_FILES]) + more
