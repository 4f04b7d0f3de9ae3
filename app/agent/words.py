"""The model's words as lines of the run's log, while they come.

A line goes out when it ends, and else what there is of it about ten times a second, marked as a piece that
continues (`split`): the first words at once, and a row of the database for each token never. What the model
thinks is a stream of its own, at level debug.
"""

from __future__ import annotations

import asyncio
import contextlib
from itertools import groupby
from types import TracebackType
from typing import Self

from app.agent.rows import AgentLog
from app.llm.model import Delta
from tailrun.process.lines import Level, Line, Stream

PIECE_S = 0.1
_MOST_WAITING = 64_000
"""Characters that may wait to be written before the model is left unread."""
_STREAMS = {"text": (Stream.MODEL, Level.INFO), "reasoning": (Stream.REASONING, Level.DEBUG)}


class Words:
    """Takes the words of one call of a model. Leaving the context writes what is left, and ends its line."""

    def __init__(self, log: AgentLog, call: int) -> None:
        self._log, self._call = log, call
        self._waiting: list[tuple[str, str]] = []
        self._open: str | None = None
        """The kind of the line that has been begun and not ended."""
        self._new, self._written, self._over = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.size = 0
        """Bytes of all words so far."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._flow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None  # noqa: S101 - set when the context was entered
        self._over.set()
        self._new.set()
        try:
            await self._task
        finally:
            self._task.cancel()
        await self.end()

    async def add(self, delta: Delta) -> None:
        """Take more words; waits while too many are unwritten. Raises what the log raises."""
        self.size += len(delta.text.encode())
        self._waiting.append((delta.kind, delta.text))
        self._new.set()
        while sum(len(text) for _, text in self._waiting) > _MOST_WAITING and not self._stopped():
            self._written.clear()
            await self._written.wait()

    async def end(self) -> None:
        """Write what is left, and end the line: what follows is of another try or reply."""
        await self._write()
        if self._open is not None:
            await self._put(self._open, [""])

    async def _flow(self) -> None:
        while not self._over.is_set():
            await self._new.wait()
            self._new.clear()
            try:
                await self._write()
            finally:
                self._written.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), PIECE_S)

    def _stopped(self) -> bool:
        """Whether nothing is written any more; raises why."""
        if self._task is None or not self._task.done():
            return False
        self._task.result()
        return True

    async def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        for kind, group in groupby(waiting, key=lambda piece: piece[0]):
            if self._open not in (None, kind):
                await self._put(str(self._open), [""])
            *whole, rest = "".join(text for _, text in group).split("\n")
            await self._put(kind, whole)
            await self._put(kind, [rest] if rest else [], split=True)

    async def _put(self, kind: str, texts: list[str], *, split: bool = False) -> None:
        if not texts:
            return
        self._open = kind if split else None
        stream, level = _STREAMS[kind]
        lines = [Line(stream, text.removesuffix("\r"), level, split=split) for text in texts]
        await self._log.lines(lines, None, call=self._call)
