"""Following one run over connections that come and go: what both clients share, without the I/O.

Promise: each `seq` is given out once and in order, whatever the connection does. The rules:
ask again with the last `seq` that was given out, drop what is not above it, be done at `end`
or at 204 (the run is over and the server has nothing new).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tailrun import calls
from tailrun.errors import APIError, ServerError, TailrunError, TooManyRequests, Unreachable
from tailrun.events import Event
from tailrun.sse import SSEParser

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 10.0
SILENCE_S = 45.0
"""The server pings every 15 s: a connection that is silent for three of them is dead."""

OnReconnect = Callable[[float, TailrunError | None], None]
"""Told before each pause: seconds until the next try, and why (None: the server closed cleanly)."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What to leave out: `level` at least this severe, `stream` only this one."""

    level: str | None = None
    stream: str | None = None
    tail: int | None = None


class Follower:
    """State of one `stream()` call. `patience_s`: how long the server may be away in one piece."""

    def __init__(
        self,
        run_id: str,
        after: int,
        filters: Filters,
        patience_s: float,
        on_reconnect: OnReconnect | None = None,
    ) -> None:
        self.run_id = run_id
        self.last = after
        self.ended = False
        self._filters = filters
        self._patience_s = patience_s
        self._on_reconnect = on_reconnect
        self._parser = SSEParser()
        self._failures = 0
        self._away_since: float | None = None

    def call(self) -> calls.Call:
        """Describe the next request."""
        self._parser = SSEParser()
        params = {"level": self._filters.level, "stream": self._filters.stream}
        known = {name: value for name, value in params.items() if value is not None}
        if self.last == 0 and self._filters.tail is not None:
            known["tail"] = str(self._filters.tail)
        return calls.stream(self.run_id, known, self.last or None)

    def connected(self, status: int) -> None:
        """Note the answer's status (200 or 204)."""
        self._away_since = None
        self.ended = status == 204  # noqa: PLR2004

    def feed(self, piece: bytes) -> list[Event]:
        """Take bytes of the stream; return the events that are new."""
        events: list[Event] = []
        for frame in self._parser.feed(piece):
            event = Event.parse(frame.data)
            if event.seq <= self.last:
                continue
            self.last = event.seq
            self._failures = 0
            events.append(event)
            if event.type == "end":
                self.ended = True
                break
        return events

    def pause(self, error: TailrunError | None, now: float) -> float:
        """Return the seconds to wait before asking again, or raise what can't be mended by waiting."""
        if isinstance(error, APIError) and not isinstance(error, ServerError | TooManyRequests):
            raise error
        if error is not None:
            if self._away_since is None:
                self._away_since = now
            elif now - self._away_since > self._patience_s:
                message = f"the stream of {self.run_id} has been away for {self._patience_s:.0f} s: {error}"
                raise Unreachable(message) from error
        delay = self._delay(error)
        self._failures += 1
        if self._on_reconnect is not None:
            self._on_reconnect(delay, error)
        return delay

    def _delay(self, error: TailrunError | None) -> float:
        if isinstance(error, APIError) and error.retry_after_s is not None:
            return min(error.retry_after_s, MAX_DELAY_S)
        ceiling = min(FIRST_DELAY_S * 2**self._failures, MAX_DELAY_S)
        return ceiling * random.uniform(0.5, 1)  # noqa: S311 - spreads clients, guards nothing
