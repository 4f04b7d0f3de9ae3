"""What the database keeps of a run that prints too much: the first half and the last half.

The window at the end moves: rows that fall out of it are deleted from the middle, and one
`truncated` marker stands for them. Live watchers saw every line; the end, where the error
is, never disappears.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from app.db.run_store import Cut
from app.line_batch import LineBatch, Written, first_seq
from app.models import Event, EventType, Fence

_SLACK = 0.1  # cut only when the window is this much over, so that a cut removes many rows at once


@dataclass(frozen=True, slots=True)
class CutRange:
    """Rows to delete, both ends included, and what they held; all cuts of a run added up."""

    from_seq: int
    to_seq: int
    lines: int
    bytes: int

    def marked(self, fence: Fence, now: int) -> Cut:
        """Return what the commit is told: the range, and the marker that stands for it."""
        data = {"from": self.from_seq, "to": self.to_seq, "lines": self.lines, "bytes": self.bytes}
        text = f"… {self.lines} lines ({self.bytes} bytes) are not kept: the log is over its limit …"
        kind = EventType.TRUNCATED
        marker = Event(self.to_seq, kind, now, fence.run_id, fence.attempt, content=text, data=data)
        return Cut(marker=marker, from_seq=self.from_seq)


@dataclass(slots=True)
class _Block:
    last_seq: int
    lines: int
    bytes: int


class LogCap:
    """Counts one attempt's committed bytes; `limit` in bytes of content."""

    def __init__(self, limit: int, already: int = 0) -> None:
        self._half = limit // 2
        self._head_left = max(0, self._half - already)
        self._head_end: int | None = None
        self._window: deque[_Block] = deque()
        self._window_bytes = 0
        self._cut = CutRange(0, 0, 0, 0)

    def add(self, events: Sequence[Written]) -> CutRange | None:
        """Count a batch that is about to be committed; return what to delete with it."""
        block = _Block(events[-1].seq, 0, 0)
        for written in events:
            if isinstance(written, LineBatch):
                block.lines += len(written.lines)
                block.bytes += sum([len(line.content) for line in written.lines])
            elif written.type is EventType.LOG:
                block.lines += 1
                block.bytes += len(written.content or "")
        if self._head_left > 0:
            self._head_left -= block.bytes
            self._head_end = block.last_seq
            return None
        if self._head_end is None:
            self._head_end = first_seq(events[0]) - 1
        self._window.append(block)
        self._window_bytes += block.bytes
        return self._shrink() if self._window_bytes > self._half * (1 + _SLACK) else None

    def _shrink(self) -> CutRange | None:
        assert self._head_end is not None  # noqa: S101 - set before the window has a block
        to_seq, lines, size = self._cut.to_seq, self._cut.lines, self._cut.bytes
        while len(self._window) > 1 and self._window_bytes > self._half:
            block = self._window.popleft()
            self._window_bytes -= block.bytes
            to_seq, lines, size = block.last_seq, lines + block.lines, size + block.bytes
        if to_seq == self._cut.to_seq:
            return None
        self._cut = CutRange(self._head_end + 1, to_seq, lines, size)
        return self._cut
