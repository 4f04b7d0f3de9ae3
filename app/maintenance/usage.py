"""Counts the space of users' files now and then, under one leader, for who looks at the metrics."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import structlog

from app.core.errors import StorageError
from app.core.telemetry import WORKSPACE_BYTES
from app.redis.ticks import Ticks
from app.storage.factory import usage
from app.storage.workspace import Workspaces

_LOOK_EVERY_S, _LEAD_S = 20.0, 90.0
LARGEST = 20
"""Users that have a series of their own; all others are one together, or metrics grew with users."""

log = structlog.get_logger()


class UsageCount:
    """Sets `tailrun_workspace_bytes` every `every_s` seconds while it leads; 0: never."""

    def __init__(self, ticks: Ticks, workspaces: Workspaces, worker_id: str, every_s: float) -> None:
        self._ticks, self._workspaces, self._me, self._every_s = ticks, workspaces, worker_id, every_s
        self._counted_at = float("-inf")

    async def run(self) -> None:
        """Count until cancelled; a store that is away only delays it."""
        while self._every_s:
            try:
                await self.look()
            except StorageError as error:
                log.warning("space is not counted for now", error=str(error))
            await asyncio.sleep(_LOOK_EVERY_S)
        await asyncio.Event().wait()

    async def look(self) -> None:
        """Count if we lead and it is time; who does not lead shows nothing."""
        if not await self._ticks.lead("usage", self._me, _LEAD_S):
            WORKSPACE_BYTES.clear()
            self._counted_at = float("-inf")
        elif time.monotonic() - self._counted_at >= self._every_s:
            show(await usage(self._workspaces))
            self._counted_at = time.monotonic()


def show(found: Counter[str]) -> None:
    """Put the largest users, and all others together, into the metrics."""
    WORKSPACE_BYTES.clear()
    largest = found.most_common(LARGEST)
    for user, size in largest:
        WORKSPACE_BYTES.labels(user).set(size)
    WORKSPACE_BYTES.labels("(others)").set(found.total() - sum(size for _, size in largest))
