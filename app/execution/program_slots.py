"""How many programs a worker runs at once (`WORKER_CONCURRENCY`), whoever starts them.

A run of steps has a slot for its whole life. An agent has one only while a program of its own runs: waiting
for its model takes none. Who waits for a slot goes before whatever the worker might claim.
"""

from __future__ import annotations

import asyncio
from collections import deque

from tailrun.process.stop import StopToken


class ProgramSlots:
    """The slots of one worker; belongs to one event loop. `freed` is set whenever one comes free."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting = deque[asyncio.Future[None]]()
        self.used = 0
        self.freed = asyncio.Event()

    @property
    def free(self) -> int:
        """How many are left for what is claimed; below 0 where some wait already."""
        return self._most - self.used - len(self._waiting)

    def take(self) -> None:
        """Take one, if need be beyond the limit: for what is ours already."""
        self.used += 1

    async def wait(self, stop: StopToken) -> bool:
        """Wait for a slot and take it, first come, first served; False: the run is to stop instead."""
        if self.free > 0:
            self.take()
            return True
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await stop.race(turn)
        except BaseException:
            if turn.done():
                self.give()
            raise
        finally:
            if not turn.done():
                self._waiting.remove(turn)
                self.freed.set()
        return turn.done()

    def give(self) -> None:
        """Give one back: to who waits longest, else to all."""
        if self._waiting and self.used <= self._most:
            self._waiting.popleft().set_result(None)
            return
        self.used -= 1
        self.freed.set()
