"""Staging in the store that keeps the workspaces: presigned addresses of `staging/<key>/…`.

The objects lie outside of every workspace, so a pod's address can't reach a file of a run. A
presigned PUT can't bound what is sent: an upload that is too large is refused when it is
collected, and never read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO

from app.core.clock import now_us
from app.core.errors import NotFound
from app.storage.s3_bucket import Object, ObjectContent
from app.storage.s3_workspace import S3Workspaces
from app.storage.staging import Collected, Offer, UploadMissing, UploadRefused, checked_key
from app.storage.staging_archive import Archives, largest_upload, pod_limits
from app.storage.workspace import Workspace

_PREFIX = "staging/"
_LONGEST_S = 7 * 86_400  # what a signature may last (AWS Signature Version 4)


class S3Staging:
    """Stages archives as objects of the workspaces' bucket."""

    def __init__(self, workspaces: S3Workspaces) -> None:
        self._bucket = workspaces.bucket
        self._threads = workspaces.threads
        self._archives = Archives(workspaces.scratch, workspaces.threads, workspaces.limits)

    async def offer(
        self, key: str, workspace: Workspace, source: Mapping[str, bytes], *, lifetime_s: float
    ) -> Offer:
        """Store the archive and sign an address for each way."""
        down, up = _names(key)
        async with self._threads.opened(self._archives.spool, _close) as spool:
            await self._archives.pack(workspace, source, spool)
            spool.seek(0)
            await self._threads.run(self._bucket.put, down, spool)
        await self._threads.run(self._bucket.delete, up)
        seconds = min(round(lifetime_s), _LONGEST_S)
        return Offer(
            {"url": self._bucket.presigned("get_object", down, seconds), "headers": {}},
            {"url": self._bucket.presigned("put_object", up, seconds), "headers": {}, "method": "PUT"},
            pod_limits(self._archives.limits),
            now_us() + seconds * 1_000_000,
        )

    async def collect(self, key: str, workspace: Workspace) -> Collected:
        """Read the object while it is unpacked."""
        up = _names(key)[1]
        limit = largest_upload(self._archives.limits)
        try:
            found = await self._threads.run(self._bucket.head, up)
            if found.size > limit:
                raise UploadRefused(f"The tool's pod sent back {found.size} bytes; {limit} are allowed.")
            async with self._threads.opened(self._bucket.get, _close_content, up) as content:
                return await self._archives.take_in(
                    lambda size: self._bucket.read(content, size, up), workspace
                )
        except NotFound:
            raise UploadMissing("The tool's pod sent no files back.") from None

    async def drop(self, key: str) -> None:
        """Delete both objects."""
        for name in _names(key):
            await self._threads.run(self._bucket.delete, name)

    async def sweep(self, older_than_s: float) -> int:
        """Delete what is older; a key counts when its last object goes."""
        return await self._threads.run(self._sweep, now_us() - round(older_than_s * 1e6))

    def _sweep(self, before: int) -> int:
        keys: dict[str, list[Object]] = {}
        for found in self._bucket.list(_PREFIX):
            keys.setdefault(found.key.split("/")[1], []).append(found)
        old = [objects for objects in keys.values() if max(o.modified_at for o in objects) < before]
        for found in (found for objects in old for found in objects):
            self._bucket.delete(found.key)
        return len(old)


def _names(key: str) -> tuple[str, str]:
    return f"{_PREFIX}{checked_key(key)}/in.tar.gz", f"{_PREFIX}{key}/out.tar.gz"


def _close(spool: IO[bytes]) -> None:
    spool.close()


def _close_content(content: ObjectContent) -> None:
    content.body.close()
