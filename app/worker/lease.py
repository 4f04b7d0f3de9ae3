"""The lease: a thread that says once a second, to Redis and to the guards, "I am alive".

A thread with its own event loop and its own connection, so that a step that burns CPU on the worker's
loop cannot starve it. It also watches that loop: one that has not answered for 30 s is wedged, its
worker does nothing but keep others from its runs, so the process ends. Where something holds
the GIL this thread is blocked too, the lease runs out, and `app.core.loop_guard` ends the process.
It ends as well when this thread breaks (no memory is left, say): a worker without a lease would
go on with runs that others take.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

from app.core.errors import StorageError
from app.redis.lease import LeaseClient

RENEW_EVERY_S = 1.0
WEDGED_AFTER_S = 30.0
EXIT_WEDGED = 70
EXIT_BROKEN = 71
_LEAVE_S = 10.0
"""Longest wait for the thread's end: a renewal and the release, of a second each, more behind sentinels."""


class Lease(threading.Thread):
    """Renews one worker's lease until `stop`.

    `on_renewed` runs in this thread after each renewal (it feeds the guards); `on_held` runs
    in `loop` with the entries that our list in Redis holds. The bounds are in seconds.
    """

    def __init__(
        self,
        client: LeaseClient,
        loop: asyncio.AbstractEventLoop,
        *,
        on_renewed: Callable[[], None],
        on_held: Callable[[list[bytes]], None],
        renew_every_s: float = RENEW_EVERY_S,
        wedged_after_s: float = WEDGED_AFTER_S,
    ) -> None:
        super().__init__(name="lease", daemon=True)
        self._client, self._loop = client, loop
        self._on_renewed, self._on_held = on_renewed, on_held
        self._renew_every_s, self._wedged_after_s = renew_every_s, wedged_after_s
        self._mine = asyncio.new_event_loop()
        self._done = asyncio.Event()
        self._leaves = False
        self._renewed_at: float | None = None
        self._looked_at = time.monotonic()
        self._silent_s = 0.0

    @property
    def age_s(self) -> float:
        """Seconds since the last renewal; infinite before the first."""
        return float("inf") if self._renewed_at is None else time.monotonic() - self._renewed_at

    def run(self) -> None:
        """Renew, feed the guards and watch the loop, again and again."""
        try:
            with asyncio.Runner(loop_factory=lambda: self._mine) as runner:
                runner.run(self._keep())
        except Exception:  # noqa: BLE001 - whatever it is, the process ends with it
            traceback.print_exc()
            os._exit(EXIT_BROKEN)

    def stop(self) -> None:
        """Leave `jobs:workers`, give back what is held and end; call it when no run is left."""
        self._leaves = True
        with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended
            self._mine.call_soon_threadsafe(self._done.set)
        self.join(timeout=_LEAVE_S)

    async def _keep(self) -> None:
        try:
            while not self._done.is_set():
                await self._renew()
                self._watch_loop()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._renew_every_s):
                        await self._done.wait()
            if self._leaves:
                with contextlib.suppress(StorageError):  # the lease runs out by itself
                    await self._client.release()
        finally:
            await self._client.close()

    async def _renew(self) -> None:
        started = time.monotonic()
        try:
            held = await self._client.renew()
        except StorageError:
            return  # age_s grows, and `ownership` asks the database
        self._renewed_at = started
        self._on_renewed()
        self._call(lambda: self._on_held(held))

    def _watch_loop(self) -> None:
        """Count the seconds without an answer, of a long step between two looks only a part.

        Such a step means that the whole process was stopped (SIGSTOP, a suspended machine): the
        loop had no chance to answer either.
        """
        now = time.monotonic()
        step_s, self._looked_at = now - self._looked_at, now
        self._silent_s += min(step_s, self._wedged_after_s / 4)
        if self._silent_s > self._wedged_after_s:
            sys.stderr.write(f"event loop has not answered for {self._silent_s:.0f} s: this worker ends\n")
            sys.stderr.flush()
            os._exit(EXIT_WEDGED)
        self._call(self._answer)

    def _answer(self) -> None:
        self._silent_s = 0.0

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            self._done.set()  # the loop is closed: the process is ending
