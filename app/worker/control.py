"""Signals to runs in flight: a STOP on `agent:control` stops a program within milliseconds.

A signal may be lost, so it is only the fast way: the request itself is in the row, and is
read again on every (re)subscribe, every two seconds and with every commit of lines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing

import orjson
import structlog

from app.redis.subscriber import Signals
from app.worker.attempts import InFlight
from tailrun.process.stop import StopReason

REREAD_EVERY_S = 2.0
LISTEN_AGAIN_S = 1.0

log = structlog.get_logger()


class Control:
    """Obeys the control channel; `reread` asks the database for cancel requests."""

    def __init__(self, signals: Signals, in_flight: InFlight, reread: Callable[[], Awaitable[None]]) -> None:
        self._signals, self._in_flight, self._reread = signals, in_flight, reread

    async def listen(self) -> None:
        """Obey what comes, until the connection breaks."""
        async with aclosing(self._signals.listen()) as messages:
            async for message in messages:
                if message is None:
                    await self._reread()
                else:
                    self._obey(message)

    def _obey(self, message: bytes) -> None:
        try:
            body = orjson.loads(message)
            run_id, signal = body["run_id"], body["signal"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            log.warning("unreadable signal", raw=message[:200].decode(errors="replace"))
            return
        attempt = self._in_flight.get(run_id) if isinstance(run_id, str) else None
        if signal == "STOP" and attempt is not None:
            log.info("stop received", run_id=run_id)
            attempt.stop.stop(StopReason.CANCEL)
        elif signal == "MESSAGE" and attempt is not None:
            attempt.news.set()
