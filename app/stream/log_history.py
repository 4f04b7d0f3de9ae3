"""The log of a run wherever it is: in the database, or, when it is too old for that, in its archive.

Answers as `app.db.log_store.LogStore` does. The database says whether there is an archive: the marker
in the place of the deleted lines does. An archive that is gone leaves that marker to speak.
"""

from __future__ import annotations

from app.core.errors import NotFound
from app.core.events import Event
from app.core.log_filter import EVERYTHING, LogFilter
from app.db.log_store import LogStore, is_archived
from app.db.run_store import RunStore
from app.storage.log_archive import LogArchive
from app.storage.workspace import Workspaces

_INDEXES_KEPT = 32


class LogHistory:
    """Reads committed events, by page."""

    def __init__(self, logs: LogStore, runs: RunStore, workspaces: Workspaces) -> None:
        self._logs, self._runs, self._workspaces = logs, runs, workspaces
        self._archives: dict[str, LogArchive] = {}

    async def page(self, run_id: str, after: int, limit: int, wanted: LogFilter = EVERYTHING) -> list[Event]:
        """Return up to `limit` events with a `seq` above `after`, in order, that pass `wanted`."""
        events = await self._logs.page(run_id, after, limit, wanted)
        if not any(map(is_archived, events)):
            return events
        archive = await self._archive(run_id)
        return events if archive is None else await archive.page(after, limit, wanted)

    async def tail_cursor(self, run_id: str, n: int) -> int:
        """Return the `after` that yields the last `n` lines of output and what follows them; 0 if fewer."""
        archive = await self._archive(run_id) if await self._logs.archived(run_id) else None
        return await self._logs.tail_cursor(run_id, n) if archive is None else await archive.tail_cursor(n)

    async def _archive(self, run_id: str) -> LogArchive | None:
        """Open the run's archive, or take the one that is open; None when it is gone."""
        found = self._archives.pop(run_id, None)
        if found is None:
            run = await self._runs.get(run_id)
            if run is None:
                return None
            try:
                found = await LogArchive.open(self._workspaces.private(run.user_id, run_id))
            except NotFound:
                return None
        self._archives[run_id] = found
        if len(self._archives) > _INDEXES_KEPT:
            del self._archives[next(iter(self._archives))]
        return found
