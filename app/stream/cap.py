"""The log cap: of a run that prints too much the database keeps the first half and the last half.

The window at the end moves: rows that fall out of it are deleted from the middle, and one
`truncated` marker takes their place. Live watchers saw every line; the end, where the error
is, is always kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from app.core.events import Event, EventType, Written
from app.core.models import Fence
from app.db.log_weight import Block, Kept, blocks_of
from app.db.run_store import Cut

_SLACK = 0.1  # how much of the window a cut frees, so that it deletes many rows at once
_GRAINS, _LEAST_GRAIN = 64, 1_000


@dataclass(frozen=True, slots=True)
class CutRange:
    """Rows to delete, both ends included, and what they held; all cuts of a run added up."""

    from_seq: int
    to_seq: int
    lines: int
    bytes: int

    def marked(self, fence: Fence, now: int) -> Cut:
        """Return what the commit is told: the range, and the marker that takes its place."""
        data = {"from": self.from_seq, "to": self.to_seq, "lines": self.lines, "bytes": self.bytes}
        text = f"… {self.lines} lines ({self.bytes} bytes) are not kept: the log is over its limit …"
        kind = EventType.TRUNCATED
        marker = Event(self.to_seq, kind, now, fence.run_id, fence.attempt, content=text, data=data)
        return Cut(marker=marker, from_seq=self.from_seq)


class LogCap:
    """Bounds the weight (`app.db.log_weight`) of all that is stored of one run's log by `limit`.

    The newest event stays, however large. What is stored up to `after` is neither counted nor cut.
    """

    def __init__(self, limit: int, after: int = 0) -> None:
        self._grain = max(_LEAST_GRAIN, limit // _GRAINS)
        self._head_left = limit // 2
        self._head_end = after
        self._window_limit = limit - limit // 2
        self._window: deque[Block] = deque()
        self._window_weight = 0
        self._cut = CutRange(0, 0, 0, 0)

    @classmethod
    def resumed(cls, limit: int, kept: Kept) -> LogCap:
        """Return a cap that continues from what earlier attempts left."""
        cap = cls(limit)
        if kept.cut is not None:
            at = kept.cut
            cap._cut = CutRange(at["from"], at["to"], at["lines"], at["bytes"])
            cap._head_end, cap._head_left = at["from"] - 1, 0
        for block in kept.blocks:
            cap._take(block)
        return cap

    def add(self, events: Sequence[Written]) -> CutRange | None:
        """Count a batch that is about to be committed; return what to delete with it."""
        for written in events:
            for block in blocks_of(written, self._grain):
                self._take(block)
        return self._shrink() if self._window_weight > self._window_limit else None

    def _take(self, block: Block) -> None:
        if not self._window and block.weight <= self._head_left:
            self._head_left -= block.weight
            self._head_end = block.last_seq
            return
        self._window_weight += block.weight
        if self._window and self._window[-1].weight + block.weight <= self._grain:
            block = self._window.pop().joined(block)
        self._window.append(block)

    def _shrink(self) -> CutRange | None:
        cut, target = self._cut, self._window_limit * (1 - _SLACK)
        to_seq, lines, size = cut.to_seq, cut.lines, cut.bytes
        while len(self._window) > 1 and self._window_weight > target:
            block = self._window.popleft()
            self._window_weight -= block.weight
            to_seq, lines, size = block.last_seq, lines + block.lines, size + block.bytes
        if to_seq == cut.to_seq:
            return None
        self._cut = CutRange(self._head_end + 1, to_seq, lines, size)
        return self._cut
