"""Looks after the logs of runs that have ended, under one leader: pack, archive, delete.

Nothing of it is urgent, so it takes no more than half of the time of the database's writer: after
each small transaction it rests for as long as that took. Whether the leader is killed, or a frozen
one comes back, does no harm: see `app.db.log_retention`.

The log of an ended run into its archive, before it is deleted from the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from app.config import LogSettings
from app.core.errors import StorageError, TailrunError
from app.core.events import Event
from app.core.telemetry import LOG_UPKEEP
from app.db.log_retention import EndedRun, LogUpkeep
from app.db.log_rows import CHUNK_EVENTS
from app.db.log_store import PACKED, LogStore, is_expired
from app.storage.log_archive import ARCHIVE_NAME, archive_bytes
from app.storage.workspace import Workspaces

JANITOR_EVERY_S = 10.0
_ANEW_S = 3600.0
_PAGE = 500
_DAY_US = 86_400_000_000
_S_US = 1_000_000

log = structlog.get_logger()


class Janitor:
    """One worker's part in it; run `sweep` under one leader."""

    def __init__(
        self,
        upkeep: LogUpkeep,
        archiver: LogArchiver,
        settings: LogSettings,
        *,
        clock: Callable[[], int],
    ) -> None:
        self._upkeep, self._archiver = upkeep, archiver
        self._settings, self._clock = settings, clock
        self._packed_to: EndedRun | None = None
        self._since = 0
        self._anew_at = 0.0
        self._refused: set[str] = set()

    def idle(self) -> None:
        """Begin at the beginning, should we lead again: others did some of the work meanwhile."""
        self._packed_to, self._anew_at = None, 0.0

    async def sweep(self) -> None:
        """Expire what is old, then pack what is left."""
        expired = packed = 0
        days = self._settings.retention_days
        cutoff = self._clock() - int(days * _DAY_US) if days else 0
        for stage in (PACKED, None) if days else ():
            async for run in self._ended(stage, since=0, before=cutoff):
                expired += await self._expire(run)
        before = self._clock() - int(self._settings.pack_after_s * _S_US)
        self._look_again_now_and_then(before)
        since = max(cutoff, self._since)
        async for run in self._ended(None, since=since, before=before, after=self._packed_to):
            packed += run.log_lines > CHUNK_EVENTS and await self._pack(run)
            self._packed_to = run
        if expired or packed:
            log.info("logs looked after", packed=packed, expired=expired)

    def _look_again_now_and_then(self, before: int) -> None:
        """Go back by a day once an hour: a run may have been committed long after the time of its end.

        No further: most runs are too small to be packed, and stay as they are.
        """
        now = asyncio.get_running_loop().time()
        if now > self._anew_at:
            self._since = 0 if self._packed_to is None else min(self._packed_to.ended_at, before) - _DAY_US
            self._packed_to, self._anew_at = None, now + _ANEW_S

    async def _ended(
        self, stage: str | None, *, since: int, before: int, after: EndedRun | None = None
    ) -> AsyncIterator[EndedRun]:
        while page := await self._upkeep.ended(stage, since=since, before=before, limit=_PAGE, after=after):
            for run in page:
                yield run
            after = page[-1]

    async def _pack(self, run: EndedRun) -> bool:
        await self._step_by_step(lambda: self._upkeep.pack_next(run))
        LOG_UPKEEP.labels(work="packed").inc()
        return True

    async def _expire(self, run: EndedRun) -> bool:
        """Archive if asked to, then delete; a log that the store refuses stays where it is."""
        archived = False
        if self._settings.archive == "on" and run.log_lines:
            try:
                archived = await self._archiver.archive(run)
            except StorageError:
                raise
            except TailrunError as error:
                if run.run_id not in self._refused:
                    log.warning("log can't be archived, it stays", run_id=run.run_id, error=str(error))
                    self._refused.add(run.run_id)
                return False
            LOG_UPKEEP.labels(work="archived").inc(archived)
        now = self._clock()
        await self._step_by_step(lambda: self._upkeep.expire_next(run, now, archived=archived))
        LOG_UPKEEP.labels(work="expired").inc()
        return True

    async def _step_by_step(self, step: Callable[[], Awaitable[bool]]) -> None:
        """Repeat `step` while there is more to do; rest as long as each one took."""
        time = asyncio.get_running_loop().time
        more = True
        while more:
            began = time()
            more = await step()
            await asyncio.sleep(time() - began)


_PAGE_LINES = 500
_PAGE_BYTES = 1_000_000


class LogArchiver:
    """Writes archives into the workspace store."""

    def __init__(self, logs: LogStore, workspaces: Workspaces) -> None:
        self._logs, self._workspaces = logs, workspaces

    async def archive(self, run: EndedRun) -> bool:
        """Write the whole log, whole or not at all; False when some of it is deleted already.

        Whoever began to delete wrote the archive before, if there is to be one. Raises
        `StorageError` while database or store are away, `TailrunError` if the store refuses.
        """
        before_end = await self._logs.page(run.run_id, run.last_seq - 2, 1)
        if any(map(is_expired, before_end)):
            return False
        workspace = self._workspaces.private(run.user_id, run.run_id)
        await workspace.write(ARCHIVE_NAME, archive_bytes(self._pages(run.run_id)))
        return True

    async def _pages(self, run_id: str) -> AsyncIterator[list[Event]]:
        after, limit = 0, _PAGE_LINES
        while page := await self._logs.page(run_id, after, limit):
            yield page
            after = page[-1].seq
            size = sum(len(event.content or "") for event in page) + 1
            limit = max(1, min(_PAGE_LINES, len(page) * _PAGE_BYTES // size))
