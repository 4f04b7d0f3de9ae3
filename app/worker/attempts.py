"""Which runs this worker has in its hands, and how to stop each. Owned by the event loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from app.core.models import Run
from tailrun.process.errors import RunFailure
from tailrun.process.stop import StopReason, StopToken


@dataclass(frozen=True, slots=True)
class Attempt:
    """A run that is ours: the row as it was taken over, its entry in Redis, its stop token."""

    run: Run
    entry: bytes
    failure: RunFailure | None = None
    """Set where only the run's end is left to write."""
    alone: bool = False
    """No other run may be beside it."""
    stop: StopToken = field(default_factory=StopToken)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there may be a new message to the run's agent."""


class InFlight(dict[str, Attempt]):
    """This worker's attempts, by run id."""

    aside: tuple[str, bytes] | None = None
    """A run, and its entry, that waits in our list until nothing else is in flight: it runs alone."""

    @property
    def entries(self) -> set[bytes]:
        """The entries that our list in Redis has to hold, or may."""
        aside = set[bytes]() if self.aside is None else {self.aside[1]}
        return aside | {attempt.entry for attempt in self.values()}

    @property
    def closed(self) -> bool:
        """Whether nothing may be added: a run is here that runs alone."""
        return any(attempt.alone for attempt in self.values())

    def stop_all(self, reason: StopReason) -> None:
        """Ask every attempt to stop."""
        for attempt in tuple(self.values()):
            attempt.stop.stop(reason)
