"""Staging without a store of objects: files in the data folder, and the API carries them to the pods.

For a cluster whose API and worker share a volume. The pods reach the API at `TOOL_SYNC_URL`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO

from app.clock import now_us
from app.errors import NotFound
from app.storage.local_workspace import LocalWorkspaces
from app.storage.staged_files import Part, StagedFiles, Way
from app.storage.staging import Collected, Offer, UploadMissing, checked_key
from app.storage.staging_archive import Archives, pod_limits
from app.storage.workspace import Workspace

TOKEN_HEADER = "Tailrun-Staging-Token"  # noqa: S105 - the header's name


class ApiStaging:
    """Stages archives as files; `url` is the API as pods see it."""

    def __init__(self, workspaces: LocalWorkspaces, files: StagedFiles, url: str) -> None:
        self._threads = workspaces.threads
        self._archives = Archives(workspaces.scratch, workspaces.threads, workspaces.limits)
        self._files = files
        self._url = url.rstrip("/")

    async def offer(
        self, key: str, workspace: Workspace, source: Mapping[str, bytes], *, lifetime_s: float
    ) -> Offer:
        """Write the archive and derive a token for each way."""
        await self._threads.run(self._files.make, checked_key(key))
        async with self._threads.opened(self._files.begin, Part.discard, key, Way.DOWN) as part:
            await self._archives.pack(workspace, source, part.file)
            await self._threads.run(part.finish)
        tokens = {way: await self._threads.run(self._files.token, key, way, lifetime_s) for way in Way}
        url = f"{self._url}/v1/staging/{key}"
        return Offer(
            {"url": url, "headers": {TOKEN_HEADER: tokens[Way.DOWN]}},
            {"url": url, "headers": {TOKEN_HEADER: tokens[Way.UP]}, "method": "PUT"},
            pod_limits(self._archives.limits),
            now_us() + round(lifetime_s * 1e6),
        )

    async def collect(self, key: str, workspace: Workspace) -> Collected:
        """Unpack the file."""
        try:
            async with self._threads.opened(self._files.open, _close, checked_key(key), Way.UP) as file:
                return await self._archives.take_in(file.read, workspace)
        except NotFound:
            raise UploadMissing("The tool's pod sent no files back.") from None

    async def drop(self, key: str) -> None:
        """Remove both files."""
        await self._threads.run(self._files.drop, checked_key(key))

    async def sweep(self, older_than_s: float) -> int:
        """Remove what is older."""
        return await self._threads.run(self._files.sweep, older_than_s)


def _close(file: IO[bytes]) -> None:
    file.close()
