"""Follows one container's log to its end, through cuts, and reads it once more when all is over.

No client library's follow can be trusted with this (they drop a last line without a line end, stop
at bytes that are no text, split at U+2028, or ask for a finished log without end), so it is our own:
a raw GET with the kubelet's times, bytes split at line feeds only. The end of a stream is not the
end of a pod: a stream ends without an error when the connection to the node does, when a log is
rotated, when a pod is deleted by force. So after each end the pod is looked at; once its container
has ended, one last read that does not follow brings what is left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from app.k8s.client import Absent, Cluster, ClusterAway, ClusterError, InvalidObject
from app.k8s.frames import FrameReader, Gap, Item, RawLines, nanoseconds
from app.k8s.spec import TOOL

MAX_LINE_BYTES = 1 << 20
"""Of a longer line the beginning counts; the rest is a gap."""
IDLE_S = 60.0
"""After so many seconds without a byte a connection is taken for dead, and opened again."""
_PAUSES_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_LAST_TRIES = 6
_BATCH_BYTES = 256 * 1024

Deliver = Callable[[list[Item]], Awaitable[None]]


class PodLogFollower:
    """Reads the log of one pod's tool. `over` returns whether its container has ended, or is gone."""

    def __init__(
        self, cluster: Cluster, log_path: str, reader: FrameReader | RawLines, over: Callable[[], bool]
    ) -> None:
        self._cluster, self._path, self._reader, self._over = cluster, log_path, reader, over
        self._stamp: int | None = reader.cursor.ns or None
        self.connections = 0
        self.batches = 0
        """How many batches of lines came."""
        self.delivering = False
        """Whether it waits for whom it delivers to, and not for the log."""

    async def run(self, deliver: Deliver) -> None:
        """Deliver the log to its end. Returns when all of it was read, or when it is gone.

        Errors of `deliver` are raised; those of the API server are retried until the caller cancels.
        """
        failures = 0
        while not self._reader.complete:
            over = self._over()
            progress = await self._read_once(deliver, follow=not over)
            if over and (progress is not None or failures >= _LAST_TRIES):
                return
            failures = 0 if progress else failures + 1
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])

    async def _read_once(self, deliver: Deliver, *, follow: bool) -> bool | None:
        """Read one connection to its end; return whether lines came. None: it ended with an error."""
        progress = False
        self._reader.again()
        self.connections += 1
        try:
            async with (
                self._cluster.stream(self._path, idle_s=IDLE_S, **self._params(follow=follow)) as answer,
                aclosing(_lines(answer, last=not follow)) as batches,
            ):
                async for batch in batches:
                    progress = True
                    await self._deliver(batch, deliver)
                    if self._reader.complete:
                        return True
        except (Absent, InvalidObject):  # 404: the pod is gone; 400: its container waits to start
            return False if not follow else None
        except (ClusterAway, ClusterError):
            return True if progress and follow else None
        return progress

    async def _deliver(self, batch: list[bytes], deliver: Deliver) -> None:
        cut = [line for line in batch if line]
        items = self._reader.read(cut, time.monotonic())
        if len(cut) < len(batch):
            items.append(Gap(0))
        for line in reversed(cut):
            if (stamp := nanoseconds(line.partition(b" ")[0])) is not None:
                self._stamp = stamp
                break
        self.batches += 1
        if items:
            self.delivering = True
            await deliver(items)
            self.delivering = False

    def _params(self, *, follow: bool) -> dict[str, Any]:
        params: dict[str, Any] = {"container": TOOL, "timestamps": "true"}
        if follow:
            params["follow"] = "true"
        if self._stamp is not None:
            second = datetime.fromtimestamp(self._stamp // 10**9, UTC)
            params["sinceTime"] = second.strftime("%Y-%m-%dT%H:%M:%SZ")
        return params


async def _lines(answer: AsyncIterator[bytes], *, last: bool) -> AsyncGenerator[list[bytes]]:
    """Yield complete lines in batches; with `last` also what has no line end.

    An empty line replaces the rest of one that was too long: a real one has at least its time.
    """
    rest, skipping = bytearray(), False
    async for piece in answer:
        for at in range(0, len(piece), _BATCH_BYTES):
            lines = piece[at : at + _BATCH_BYTES].split(b"\n")
            if len(lines) == 1:
                if not skipping:
                    rest += lines[0]
            else:
                first = b"" if skipping else bytes(rest) + lines[0]
                rest, skipping = bytearray(lines[-1]), False
                found = [line for line in (first, *lines[1:-1]) if line]
                if found:
                    yield found
            if len(rest) > MAX_LINE_BYTES:
                yield [bytes(rest[:MAX_LINE_BYTES]), b""]
                rest, skipping = bytearray(), True
    if last and rest and not skipping:
        yield [bytes(rest)]
