"""Periodic work that any worker does: the queue's tick every second, the reconciler under one leader.

The tick touches only Redis: it makes due entries pending and gives back what workers with
a dead lease hold. Who claims such an entry takes the run over.
"""

from __future__ import annotations

import asyncio

import structlog

from app.errors import StorageError
from app.redis.ticks import Ticks
from app.worker.reconciler import Reconciler

TICK_EVERY_S = 1.0
RECONCILE_EVERY_S = 5.0

log = structlog.get_logger()


class Reaper:
    """Turns the clockwork for ever."""

    def __init__(self, ticks: Ticks, reconciler: Reconciler, worker_id: str) -> None:
        self._ticks, self._reconciler, self._me = ticks, reconciler, worker_id

    async def run(self) -> None:
        """Tick and reconcile until cancelled; a server that is away only delays it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tick_for_ever())
            group.create_task(self._reconcile_for_ever())

    async def _tick_for_ever(self) -> None:
        while True:
            try:
                tick = await self._ticks.tick()
            except StorageError as error:
                log.warning("tick failed", error=str(error))
            else:
                for worker_id, entries in tick.reaped.items():
                    log.warning("lease ran out, entries given back", worker_id=worker_id, entries=entries)
            await asyncio.sleep(TICK_EVERY_S)

    async def _reconcile_for_ever(self) -> None:
        while True:
            await asyncio.sleep(RECONCILE_EVERY_S)
            try:
                if await self._ticks.lead("reconciler", self._me, RECONCILE_EVERY_S * 3):
                    await self._reconciler.reconcile()
            except StorageError as error:
                log.warning("reconciler failed", error=str(error))
