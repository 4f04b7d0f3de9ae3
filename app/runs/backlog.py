"""The bound on a user's backlog: so many runs of theirs may wait or be held, and the next one is a 429.

Counted in the database at most once a second per user and process, and again before anybody is
refused; what this process makes meanwhile is added. Several API processes together may let in
what the others took within that second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from app.core.errors import TooManyRequests

FRESH_S = 1.0
_FRESH_WHEN_FULL_S = 0.1
_RETRY_AFTER_S = 5
_MOST_USERS = 4096


@dataclass(slots=True)
class _Known:
    """The known state of a user: runs counted or made since, runs being made now, when they were counted."""

    waiting: int = 0
    coming: int = 0
    counted_at: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Backlog:
    """Lets runs in while their user has room. `count(user, cap)` asks the database, up to `cap`."""

    def __init__(
        self,
        count: Callable[[str, int], Awaitable[int]],
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count, self._limit, self._clock = count, limit, clock
        self._users: dict[str, _Known] = {}

    @asynccontextmanager
    async def place(self, user_id: str) -> AsyncGenerator[None]:
        """Hold room for one more run of the user's while it is made; `TooManyRequests` if there is none."""
        known = self._users.setdefault(user_id, _Known())
        await self._refresh(user_id, known, FRESH_S)
        if self._full(known):
            await self._refresh(user_id, known, _FRESH_WHEN_FULL_S)
        if self._full(known):
            raise TooManyRequests(
                f"{self._limit} of your runs wait or are held already (USER_BACKLOG_MAX); "
                "let some of them run, or cancel some.",
                code="backlog_full",
                retry_after_s=_RETRY_AFTER_S,
            )
        known.coming += 1
        try:
            yield
            known.waiting += 1
        finally:
            known.coming -= 1

    def _full(self, known: _Known) -> bool:
        return known.waiting + known.coming >= self._limit

    async def _refresh(self, user_id: str, known: _Known, fresh_s: float) -> None:
        if self._clock() - known.counted_at < fresh_s:
            return
        async with known.lock:
            if self._clock() - known.counted_at >= fresh_s:
                known.waiting = await self._count(user_id, self._limit)
                known.counted_at = self._clock()
                self._forget_others()

    def _forget_others(self) -> None:
        if len(self._users) <= _MOST_USERS:
            return
        old = self._clock() - FRESH_S
        idle = [name for name, one in self._users.items() if not one.coming and one.counted_at < old]
        for name in idle:
            del self._users[name]
