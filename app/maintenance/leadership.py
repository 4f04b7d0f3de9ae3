"""Whether this worker leads a periodic work: asked every second, so Redis is not asked each time.

Leadership saves work, and nothing rests on it. Who leads renews it in the last two thirds of its
life; who does not lead asks each time, so that a leader's death costs at most that life.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from app.redis.ticks import Ticks

LEAD_S = 5.0


class Leadership:
    """One worker's claim to lead `role`."""

    def __init__(
        self, ticks: Ticks, role: str, worker_id: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ticks, self._role, self._me, self._clock = ticks, role, worker_id, clock
        self._sure_until = float("-inf")

    async def held(self) -> bool:
        """Whether it is ours now; `RedisDown` while that can't be asked."""
        now = self._clock()
        if now < self._sure_until:
            return True
        leads = await self._ticks.lead(self._role, self._me, LEAD_S)
        self._sure_until = now + LEAD_S / 3 if leads else float("-inf")
        return leads
