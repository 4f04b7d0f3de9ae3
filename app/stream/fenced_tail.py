"""A run's stream in Redis, as the attempt that owns it writes and inherits it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from app.core.errors import LostOwnership
from app.core.events import Event, EventType
from app.core.models import Fence
from app.core.telemetry import LOG_GAPS
from app.db.run_store import Batch, RunStore
from app.redis.publisher import Publisher, Tail


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
