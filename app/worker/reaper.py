"""Periodic work that keeps the queue alive: the tick in every worker, the reconciler under one leader."""

from __future__ import annotations

import asyncio

import structlog

from app.errors import StorageError
from app.redis.ticks import Ticks
from app.worker.reconciler import Reconciler

RECONCILE_EVERY_S = 5.0

log = structlog.get_logger()


class Reaper:
    """Turns the clockwork for ever."""

    def __init__(self, ticks: Ticks, reconciler: Reconciler, worker_id: str) -> None:
        self._ticks, self._reconciler, self._me = ticks, reconciler, worker_id

    async def run(self) -> None:
        """Tick and reconcile until cancelled; a server that is away only delays it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ticks.run())
            group.create_task(self._reconcile_for_ever())

    async def _reconcile_for_ever(self) -> None:
        while True:
            await asyncio.sleep(RECONCILE_EVERY_S)
            try:
                if await self._ticks.lead("reconciler", self._me, RECONCILE_EVERY_S * 3):
                    await self._reconciler.reconcile()
            except StorageError as error:
                log.warning("reconciler failed", error=str(error))
