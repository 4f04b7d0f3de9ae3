"""A run's log in memory: what the agent wrote into its stream, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from app.core.events import EventType
from app.core.models import StepRecord
from tailrun.process.lines import Level, Line, Stream


class Recorder:
    """Implements `app.agent.tools.program.RunLog`; `trace` holds every call in order."""

    def __init__(self) -> None:
        self.trace: list[tuple[str, Any]] = []
        self.records: dict[str, StepRecord] = {}
        self.sources: dict[str, str] = {}
        self._printed = asyncio.Event()

    async def lines(self, lines: Sequence[Line], step: str | None) -> Sequence[Line]:
        self.trace.extend(("line", (step, line)) for line in lines)
        self._printed.set()
        return lines

    async def printed(self, text: str) -> None:
        """Wait until a program has printed a line that holds `text`."""
        async with asyncio.timeout(60):
            while not any(text in line for line in self.text):
                self._printed.clear()
                await self._printed.wait()

    async def say(self, level: Level, content: str, step: str | None = None) -> None:
        self.trace.append(("say", (step, level, content)))

    async def event(
        self,
        kind: EventType,
        *,
        level: Level | None = None,
        step: str | None = None,
        content: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        self.trace.append((kind, (step, level, content, data)))

    async def save_step(self, record: StepRecord) -> None:
        self.records[record.step_id] = record
        self.trace.append(("record", (record.step_id, record.status)))

    async def source(self, step: str) -> str | None:
        return self.sources.get(step)

    async def flush(self) -> None:
        self.trace.append(("flush", None))

    def of(self, kind: str) -> list[Any]:
        return [entry for name, entry in self.trace if name == kind]

    @property
    def said(self) -> list[tuple[Level, str]]:
        return [(level, content) for _, level, content in self.of("say")]

    @property
    def text(self) -> list[str]:
        return [line.content for _, line in self.of("line")]

    @property
    def stdout(self) -> list[str]:
        return [line.content for _, line in self.of("line") if line.stream is Stream.STDOUT]

    @property
    def headings(self) -> list[str]:
        return [content for _, _, content, _ in self.of(EventType.STEP)]
