"""Whether this worker can work, and what keeps it from it: told to its log and to `/readyz`."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from app.db.engine import Database
from app.db.migrate import ensure_current
from app.db.run_store import RunStore
from app.errors import StorageError
from app.models import RunStatus
from app.redis.clients import RedisClients
from app.redis.server_report import ServerReport
from app.worker.resources import Resources

RETRY_S = 1.0
"""Seconds between two looks at a store that is away."""
_REMARKS_S = 0.5
"""How long `/readyz` waits for what there is to say about Redis; a probe is impatient."""

log = structlog.get_logger()


class Readiness:
    """Asks Redis and the database. `trouble` is what is wrong, empty if nothing."""

    def __init__(
        self, database_url: str, redis: RedisClients, db: Database, runs: RunStore, resources: Resources
    ) -> None:
        self._database_url = database_url
        self._redis, self._db, self._runs, self._resources = redis, db, runs, resources
        self._report = ServerReport(redis)
        self._migrated = False
        self.trouble = "starting"

    async def wait(self, draining: asyncio.Event) -> bool:
        """Wait for Redis and the database; False if told to stop first."""
        while not draining.is_set():
            try:
                await self._ask()
            except StorageError as error:
                log.warning("waiting", error=str(error))
                await self.pause(draining, error)
            else:
                return True
        return False

    async def pause(self, draining: asyncio.Event, error: StorageError) -> None:
        """Note that a store is away, and wait before the next look."""
        self.trouble = str(error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(draining.wait(), RETRY_S)

    async def _ask(self) -> None:
        await self._redis.ping()
        await self._db.ping()
        if not self._migrated:
            await asyncio.to_thread(ensure_current, self._database_url)
            self._migrated = True
        await self._runs.open_runs(RunStatus.RUNNING, limit=1)

    async def remark(self) -> None:
        """Say in the log what is amiss with Redis though it answers."""
        for remark in await self._report.remarks():
            log.warning(remark)

    async def probe(self, in_flight: int) -> tuple[bool, str]:
        """Answer `/readyz`: whether runs are claimed, and why not, or what there is to say."""
        trouble = self._resources.lack() or self.trouble
        if trouble:
            return False, trouble
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REMARKS_S):
                await self._report.remarks()
        remarks = (f"remark: {remark}" for remark in self._report.known)
        return True, "\n".join([f"ready, {in_flight} runs in flight", *remarks])
