"""How many runs at once, and whether the machine has enough left for one more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

from tailrun.capture.results import Enough
from tailrun.errors import TailrunError
from tailrun.process.host import Need, lacks


class ResourceLimitException(TailrunError):
    """Insufficient resources: too little memory, disk or file handles is free for another run."""


class ResourceManager:
    """Looks at the machine, and allows a bounded number of runs at a time.

    Args:
        max_concurrent: runs at once; others wait for a place. Belongs to one event loop.
        min_free_memory_bytes: refuse below; 0: do not look. Limits of a container count.
        min_free_disk_bytes: the same for the disk of `folder`.
        min_free_fds: the same for the files that this process may still open.
        folder: where runs write.
    """

    def __init__(
        self,
        max_concurrent: int = 10,
        *,
        min_free_memory_bytes: int = 64_000_000,
        min_free_disk_bytes: int = 100_000_000,
        min_free_fds: int = 64,
        folder: str | Path = ".",
    ) -> None:
        self._need = Need(min_free_memory_bytes, min_free_disk_bytes, min_free_fds)
        self._folder = Path(folder)
        self._places = asyncio.Semaphore(max_concurrent)

    def check_resources(self) -> Enough:
        """Return what is true when there is enough for another run; it may be awaited.

        Raises:
            ResourceLimitException: there is not; the message names what is short.
        """
        lacking = [text for _, text in lacks(self._need, self._folder)]
        if lacking:
            raise ResourceLimitException(f"Insufficient resources: {'; '.join(lacking)}")
        return Enough()

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """Wait for one of the places, then check; hold the place until the block ends."""
        async with self._places:
            self.check_resources()
            yield
