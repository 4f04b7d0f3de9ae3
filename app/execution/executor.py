"""The executor interface: run one program, hand over its lines, say how it ended.

The local process and the Kubernetes Job implement it; one conformance suite holds both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from app.models import Line

LineSink = Callable[[Sequence[Line]], Awaitable[None]]
"""Takes lines in order; awaiting it is the backpressure that leaves the pipe unread."""


class StopReason(StrEnum):
    """Why a program is to be stopped."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    DRAIN = "drain"
    LOST = "lost"


class StopToken:
    """Asks whoever runs something to stop; set once, the first reason stays.

    CANCEL and TIMEOUT: SIGTERM, grace, SIGKILL. DRAIN and LOST: the same without a grace,
    for the run goes on elsewhere.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._asked: set[asyncio.Future[None]] = set()
        self.reason: StopReason | None = None

    def stop(self, reason: StopReason) -> None:
        """Ask to stop; later calls change nothing, but LOST overrides every other reason."""
        if self.reason is None or reason is StopReason.LOST:
            self.reason = reason
        self._event.set()
        for asked in self._asked:
            if not asked.done():
                asked.set_result(None)

    @property
    def stopped(self) -> bool:
        """Whether somebody asked to stop."""
        return self._event.is_set()

    async def wait(self) -> StopReason:
        """Wait until somebody asks to stop; return the reason."""
        await self._event.wait()
        assert self.reason is not None  # noqa: S101 - set before the event
        return self.reason

    async def race(self, task: asyncio.Task[Any], timeout_s: float | None = None) -> None:
        """Wait until `task` is done, somebody asks to stop, or the time is over; cancel nothing."""
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
class ToolRun:
    """One program to run. `timeout_s` None: only the run's own time limit holds."""

    run_id: str
    attempt: int
    step_id: str
    argv: tuple[str, ...]
    cwd: Path
    env: dict[str, str] = field(default_factory=dict[str, str])
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a program used: CPU and wall time in seconds, the largest resident set in bytes."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    max_rss_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ToolResult:
    """How a program ended. `exit_code` is 128 + n after signal n, as shells count.

    `stopped` is set when it ended because it was asked to (TIMEOUT is also its own `timeout_s`).
    """

    exit_code: int
    signal: int | None = None
    stopped: StopReason | None = None
    usage: Usage = field(default_factory=Usage)


class Executor(Protocol):
    """Runs programs.

    Returns only when the program and all its descendants are gone and every line was handed
    to `sink`. Raises `RunFailure` (START_FAILED, EXECUTOR_UNAVAILABLE, RESOURCE_LIMIT) when the
    program never ran. If `sink` raises, the program is killed and the error goes on. When the
    calling task is cancelled, the program is killed before CancelledError is raised again.
    """

    async def run(self, tool: ToolRun, sink: LineSink, stop: StopToken) -> ToolResult:
        """Run `tool` to its end."""
        ...

    def heartbeat(self) -> None:
        """Say that the worker still owns its runs; called from any thread, once a second.

        Without a word for `LEASE_S` − 1 s every program is killed.
        """
        ...

    async def close(self) -> None:
        """Kill what still runs and let go of everything."""
        ...
