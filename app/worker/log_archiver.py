"""The log of an ended run into its archive, before it is deleted from the database."""

from __future__ import annotations

from collections.abc import AsyncIterator

from app.db.log_stages import is_expired
from app.db.log_store import LogStore
from app.db.log_upkeep import EndedRun
from app.models import Event
from app.storage.log_archive import ARCHIVE_NAME, archive_bytes
from app.storage.workspace import Workspaces

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
