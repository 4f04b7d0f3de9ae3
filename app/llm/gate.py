"""How many calls of one model this process has open, and when none may begin.

A server that is overloaded asks for a pause, which holds for every call of its model: without that,
a hundred runs would each find out by themselves, and together keep it overloaded. A short pause is
waited for here; a longer one is the caller's (`PauseAsked`), which then frees its slot in the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from app.llm.failures import LONGEST_WAIT_S, PauseAsked

_SPREAD = 0.2
"""The part of a pause over which those that waited begin, so that they do not all come at once."""


class Gate:
    """The gate of one model; `random` returns numbers from 0 to 1."""

    def __init__(self, most: int, random: Callable[[], float]) -> None:
        self._slots = asyncio.Semaphore(most)
        self._random = random
        self._until = 0.0
        self._spread = 0.0

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[None]:
        """Wait for a slot, and for the end of a short pause; hold the slot.

        Raises:
            PauseAsked: the pause is longer than anybody should wait here.
        """
        self._refuse_long()
        async with self._slots:
            while (left := self._left()) > 0:
                self._refuse_long()
                await asyncio.sleep(left + self._spread * self._random())
            yield

    def pause(self, seconds: float) -> None:
        """Let no call begin for so long."""
        until = asyncio.get_running_loop().time() + seconds
        if until > self._until:
            self._until, self._spread = until, seconds * _SPREAD

    def _left(self) -> float:
        return self._until - asyncio.get_running_loop().time()

    def _refuse_long(self) -> None:
        left = self._left()
        if left > LONGEST_WAIT_S:
            raise PauseAsked(f"The model's server asked for a pause, of which {left:.0f} s are left.", left)
