"""One timer per stream: says when it was silent for long, and when its reader does not read.

It is re-armed lazily, so that sending a payload costs two clock readings and no timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Watchdog:
    """Calls `on_idle` after `idle_s` without a send, `on_stalled` once a send takes `stalled_s`."""

    def __init__(
        self,
        idle_s: float | None,
        stalled_s: float,
        *,
        on_idle: Callable[[], None],
        on_stalled: Callable[[], None],
    ) -> None:
        self.stalled = False
        self._idle_s, self._stalled_s = idle_s, stalled_s
        self._on_idle, self._on_stalled = on_idle, on_stalled
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._sending_since: float | None = None
        self._timer = self._loop.call_later(self._round(), self._look)

    def sending(self) -> None:
        """A send begins."""
        self._sending_since = self._loop.time()

    def sent(self) -> None:
        """The send is done."""
        self._sent_at = self._loop.time()
        self._sending_since = None

    def idle(self) -> bool:
        """Whether nothing was sent for so long that a ping is due."""
        return self._idle_s is not None and self._loop.time() - self._sent_at >= self._idle_s

    def stop(self) -> None:
        """End the timer."""
        self._timer.cancel()

    def _round(self) -> float:
        return min(self._idle_s or self._stalled_s, self._stalled_s)

    def _look(self) -> None:
        now = self._loop.time()
        due = now + self._round()
        if self._sending_since is not None:
            due = min(due, self._sending_since + self._stalled_s)
            if due <= now:
                self.stalled = True
                self._on_stalled()
                return
        elif self._idle_s is not None:
            due = min(due, self._sent_at + self._idle_s)
            if due <= now:
                self._on_idle()
                due = now + self._round()
        self._timer = self._loop.call_at(due, self._look)
