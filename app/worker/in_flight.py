"""Which runs this worker has in its hands, and how to stop each. Owned by the event loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from app.core.models import Run
from tailrun.process.stop import StopReason, StopToken


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run in flight: the row as it was taken over, its entry in Redis, its stop token."""

    run: Run
    entry: bytes
    stop: StopToken = field(default_factory=StopToken)
    alone: bool = False
    """No other run may be beside it."""


class InFlight:
    """The attempts of this worker, by run id."""

    def __init__(self) -> None:
        self._attempts: dict[str, Attempt] = {}
        self.aside: tuple[str, bytes] | None = None
        """A run, and its entry, that waits in our list until nothing else is in flight: it runs alone."""

    def __len__(self) -> int:
        return len(self._attempts)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._attempts

    def __iter__(self) -> Iterator[Attempt]:
        return iter(list(self._attempts.values()))

    @property
    def entries(self) -> set[bytes]:
        """The entries that our list in Redis has to hold, or may."""
        aside = set[bytes]() if self.aside is None else {self.aside[1]}
        return aside | {attempt.entry for attempt in self}

    @property
    def closed(self) -> bool:
        """Whether nothing may be added: a run is here that runs alone."""
        return any(attempt.alone for attempt in self)

    def get(self, run_id: str) -> Attempt | None:
        """Return the attempt of a run, if it is here."""
        return self._attempts.get(run_id)

    def add(self, attempt: Attempt) -> None:
        """Enter an attempt that starts now."""
        self._attempts[attempt.run.run_id] = attempt

    def remove(self, attempt: Attempt) -> None:
        """Take out an attempt that has ended."""
        self._attempts.pop(attempt.run.run_id, None)

    def stop_all(self, reason: StopReason) -> None:
        """Ask every attempt to stop."""
        for attempt in self:
            attempt.stop.stop(reason)
