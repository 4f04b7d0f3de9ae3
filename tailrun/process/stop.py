"""How a program is asked to stop, and how it ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class StopReason(StrEnum):
    """Why a program is to be stopped."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    DRAIN = "drain"
    LOST = "lost"


class StopToken:
    """A request to stop; set once, the first reason stays.

    CANCEL and TIMEOUT: SIGTERM, grace, SIGKILL. DRAIN and LOST: the same without a grace,
    for another worker has the run.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._lost = asyncio.Event()
        self._asked: set[asyncio.Future[None]] = set()
        self.reason: StopReason | None = None

    def stop(self, reason: StopReason) -> None:
        """Ask to stop; later calls change nothing, but LOST overrides every other reason."""
        if self.reason is None or reason is StopReason.LOST:
            self.reason = reason
        if reason is StopReason.LOST:
            self._lost.set()
        self._event.set()
        for asked in self._asked:
            if not asked.done():
                asked.set_result(None)

    @property
    def stopped(self) -> bool:
        """Whether a stop was requested."""
        return self._event.is_set()

    async def wait(self) -> StopReason:
        """Wait until a stop is requested; return the reason."""
        await self._event.wait()
        assert self.reason is not None  # noqa: S101 - set before the event
        return self.reason

    async def lost(self) -> None:
        """Wait until another worker has the run, which may follow another reason."""
        await self._lost.wait()

    async def race(self, task: asyncio.Future[Any], timeout_s: float | None = None) -> None:
        """Wait until `task` is done, a stop is requested, or the time is over; cancel nothing."""
        if self.stopped:
            return
        asked = asyncio.get_running_loop().create_future()
        self._asked.add(asked)
        try:
            await asyncio.wait((task, asked), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._asked.discard(asked)
            asked.cancel()


@dataclass(frozen=True, slots=True)
class Usage:
    """The resources that a program used: CPU and wall time in seconds, the largest resident set in bytes."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    max_rss_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """How a program ended. `exit_code` is 128 + n after signal n, as shells count.

    `stopped` is set when it ended because it was asked to (TIMEOUT is also its own time limit).
    """

    exit_code: int | None
    signal: int | None = None
    stopped: StopReason | None = None
    usage: Usage | None = field(default_factory=Usage)
