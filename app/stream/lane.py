"""The two ways that a log writer sends events: a queue, the loop that empties it, and the stream in Redis.

A lane makes one call at a time, in order, and takes items out of its queue only after the call that sent
them has returned. So what is in the queue is what its receiver may lack, whatever went wrong.

`FencedTail` is the receiver of the publish lane: a run's stream in Redis, as the attempt that owns it writes
and inherits it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

from app.core.errors import LostOwnership
from app.core.events import Event, EventType
from app.core.models import Fence
from app.core.telemetry import LOG_GAPS
from app.db.run_store import Batch, RunStore
from app.redis.publisher import Publisher, Tail

T = TypeVar("T")


class LaneQueue(Generic[T]):
    """Items in order of `seq`; each brings events up to its own `seq`, and has a size in bytes.

    `sent` is the seq up to which events have left the queue, `bytes` the size of those that are in it. Items
    are counted from the first one ever: `added` came in, `removed` of them have left.
    """

    def __init__(self) -> None:
        self.bytes = self.added = self.removed = 0
        self._items: deque[tuple[T, int, int]] = deque()
        self.start(0)

    def start(self, seq: int) -> None:
        """Begin after `seq`."""
        self.sent = self._top = seq

    @property
    def events(self) -> int:
        """How many events wait."""
        return self._top - self.sent

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: T, seq: int, size: int) -> None:
        """Take an item that follows the last one."""
        self._items.append((item, seq, size))
        self._top = seq
        self.bytes += size
        self.added += 1

    def head(self, events: int = sys.maxsize, size: int = sys.maxsize) -> tuple[list[T], int]:
        """Return the first items, about so many events and bytes, and what to `remove` after."""
        items, weight = list[T](), 0
        for item, seq, bytes_ in self._items:
            items.append(item)
            weight += bytes_
            if seq - self.sent >= events or weight > size:
                break
        return items, self.removed + len(items)

    def remove(self, count: int) -> None:
        """Remove items until `count` have left."""
        while self.removed < count:
            _, self.sent, size = self._items.popleft()
            self.bytes -= size
            self.removed += 1

    def skip(self, seq: int) -> None:
        """Remove items of events up to `seq`: their receiver needs them no more."""
        while self._items and self._items[0][1] <= seq:
            self.remove(self.removed + 1)


class Lane(Generic[T]):
    """Calls `send` when something has waited for `every` seconds, or when `most` events wait.

    `send` sends the queue's head and removes it. The pause is counted from the end of a call; for an `eager`
    lane from its beginning, and the very first item does not wait.
    """

    def __init__(
        self, send: Callable[[], Awaitable[None]], *, every: float, most: int, eager: bool = False
    ) -> None:
        self.queue = LaneQueue[T]()
        self._send, self._every, self._most, self._eager = send, every, most, eager
        self._changed = asyncio.Event()
        self._hurried = self._closed = False

    def add(self, item: T, seq: int, size: int) -> None:
        """Queue an item."""
        idle = not self.queue
        self.queue.add(item, seq, size)
        if idle or self.queue.events >= self._most:
            self._changed.set()

    def hurry(self) -> None:
        """Send what is queued without waiting for more."""
        self._hurried = True
        self._changed.set()

    def close(self) -> None:
        """Let `run` return after the call that is under way; what is queued stays."""
        self._closed = True
        self._changed.set()

    async def run(self) -> None:
        """Send until closed; raises what `send` raises."""
        clock = asyncio.get_running_loop().time
        due = clock() + (0 if self._eager else self._every)
        while not self._closed:
            self._changed.clear()
            wait_s = due - clock()
            if not self.queue:
                self._hurried = False
                await self._changed.wait()
            elif wait_s > 0 and self.queue.events < self._most and not self._hurried:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):  # `wait_for` would make a task
                        await self._changed.wait()
            else:
                self._hurried = False
                began = clock()
                await self._send()
                due = (began if self._eager else clock()) + self._every


class FencedTail:
    """Appends and publishes under one attempt's fence. Calls may raise `RedisDown` and `LostOwnership`."""

    def __init__(self, fence: Fence, publisher: Publisher, tail: Tail, runs: RunStore) -> None:
        self._fence = fence
        self._publisher, self._tail, self._runs = publisher, tail, runs
        self._may_raise = True

    async def inherit(self, after: int, now: int) -> int:
        """Shut earlier attempts out, then commit what they published above `after`; return the last `seq`.

        Steps 2 to 4 of a take-over; step 1 is `RunStore.take_over`. Repeatable. A hole, where lines went
        down with their worker and Redis together, becomes a `gap` event.
        """
        await self._publisher.raise_fence(self._fence.run_id, self._fence.attempt)
        self._may_raise = False
        found = [Event.decode(raw) for _, raw in await self._tail.read(self._fence.run_id, after)]
        missing = list(self._with_gaps(found, after, now))
        if not missing:
            return after
        await self._runs.commit(self._fence, after, Batch(events=missing))
        return missing[-1].seq

    async def append(
        self, events: Sequence[bytes], first_seq: int, committed: int, *, ended: bool = False
    ) -> None:
        """Append encoded events from `first_seq` on; what is committed may leave the tail.

        `ended`: the run has no more events, so that fence and tail may go after a while.
        """
        run_id, attempt = self._fence.run_id, self._fence.attempt
        while True:
            refused = await self._publisher.append(
                run_id,
                attempt,
                first_seq,
                events,
                keep_from=committed + 1,
                may_raise=self._may_raise,
                ended=ended,
            )
            self._may_raise = False
            if refused is None:
                return
            if refused.fence is not None and refused.fence > attempt:
                raise LostOwnership
            await self._confirm()  # no fence, or an older one: Redis forgot, but the row knows
            self._may_raise = True

    async def _confirm(self) -> None:
        owner = await self._runs.owner(self._fence.run_id)
        mine = (self._fence.attempt, self._fence.worker_id)
        if owner is None or (owner.attempt, owner.worker_id) != mine:
            raise LostOwnership

    def _with_gaps(self, found: Sequence[Event], after: int, now: int) -> Iterator[Event]:
        expected = after + 1
        for event in found:
            if event.data.get("from", event.seq) > expected:
                last = event.seq - 1
                LOG_GAPS.inc()
                run_id, attempt = self._fence.run_id, self._fence.attempt
                yield Event(last, EventType.GAP, now, run_id, attempt, data={"from": expected, "to": last})
            yield event
            expected = event.seq + 1
