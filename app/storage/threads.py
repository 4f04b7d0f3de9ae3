"""Blocking calls in threads that are never left behind.

Storage blocks (disks, boto3), so it runs in threads with a limit of its own. A thread
can't be cancelled: if its caller went on, file descriptors would be closed and temporary
folders removed under a thread that still writes. So a call always waits for its thread,
also when its task is cancelled, and raises the cancellation afterwards.

Many blocking transfers at once, with one outcome: all done, or the first error.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Executor
from typing import TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

from app.core.errors import StorageError, TailrunError
from tailrun.process.aio import run_to_completion

T = TypeVar("T")
Args = TypeVarTuple("Args")

_THREADS = 32


class Threads:
    """Runs blocking calls, at most 32 at a time."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(_THREADS)

    async def run(
        self,
        call: Callable[[*Args], T],
        *args: *Args,
        on_cancel: Callable[[], None] | None = None,
    ) -> T:
        """Run `call(*args)` in a thread and return its result; returns only when it has ended."""
        return await run_to_completion(self._in_thread(call, *args), on_cancel)

    @contextlib.asynccontextmanager
    async def opened(
        self,
        acquire: Callable[[*Args], T],
        release: Callable[[T], None],
        *args: *Args,
    ) -> AsyncGenerator[T]:
        """Yield what `acquire(*args)` opened in a thread; `release` it, also when cancelled."""
        got: list[T] = []
        try:
            await self.run(lambda: got.append(acquire(*args)))
            yield got[0]
        finally:
            for resource in got:
                release(resource)

    async def _in_thread(self, call: Callable[[*Args], T], *args: *Args) -> T:
        return await anyio.to_thread.run_sync(call, *args, limiter=self._limiter)


Item = TypeVar("Item")


def each(
    pool: Executor,
    move: Callable[[Item], None],
    items: Iterable[Item],
    stop: threading.Event | None = None,
) -> None:
    """Call `move` for all items in `pool`.

    The first error, or `stop` set from outside, keeps the rest from starting; the error is
    raised when no thread is at work any more.
    """
    stop = stop or threading.Event()

    def one(item: Item) -> BaseException | None:
        if stop.is_set():
            return None
        try:
            move(item)
        except TailrunError as error:
            stop.set()
            return error
        except OSError as error:
            stop.set()
            return StorageError(f"A file could not be brought over: {error.strerror}.")
        return None

    for error in list(pool.map(one, items)):
        if error is not None:
            raise error
