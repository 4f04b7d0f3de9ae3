"""What the agent sees of the log writer: a place to put lines, events and step records.

`app.stream.writer` implements it; every call may raise `LostOwnership`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from app.core.events import EventType
from app.core.models import StepRecord
from tailrun.process.lines import Level, Line


class RunLog(Protocol):
    """The one writer of a run's stream while an attempt owns it. Calls are in stream order."""

    async def lines(self, lines: Sequence[Line], step: str | None) -> None:
        """Append output lines; waits when too much is unwritten (backpressure)."""
        ...

    async def say(self, level: Level, content: str, step: str | None = None) -> None:
        """Append one line of Tailrun's own (`stream: "system"`)."""
        ...

    async def event(
        self,
        kind: EventType,
        *,
        level: Level | None = None,
        step: str | None = None,
        content: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Append an event of another type (`step`, `artifact`, `usage` …)."""
        ...

    async def save_step(self, record: StepRecord) -> None:
        """Put a step record into the next transaction."""
        ...

    async def source(self, step: str) -> str | None:
        """Return the `src` of the last line that is committed of a step, if one has any."""
        ...

    async def flush(self) -> None:
        """Return once everything handed over so far is committed to the database."""
        ...
