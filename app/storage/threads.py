"""Blocking calls in threads that are never left behind.

Storage blocks (disks, boto3), so it runs in threads with a limit of its own. A thread
can't be cancelled: if its caller went on, file descriptors would be closed and temporary
folders removed under a thread that still writes. So a call always waits for its thread,
also when its task is cancelled, and raises the cancellation afterwards.

Many blocking transfers at once, with one outcome: all done, or the first error.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

from app.core.errors import StorageError, TailrunError

T = TypeVar("T")
Args = TypeVarTuple("Args")

_THREADS = 32


async def finish(work: Coroutine[Any, Any, T], *, on_cancel: Callable[[], None] | None = None) -> T:
    """Await `work` to its end, whatever happens to the calling task; then raise its cancellation.

    `on_cancel` is called at once when the task is cancelled, to ask the work to be short.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError as cancelled:
        if on_cancel is not None:
            on_cancel()
        await _end(task)
        raise cancelled from task.exception()
    return task.result()


async def _end(task: asyncio.Future[Any]) -> None:
    """Wait for `task`; the caller is already cancelled, and may be cancelled again and again."""
    with anyio.CancelScope(shield=True):
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})


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
        return await finish(self._in_thread(call, *args), on_cancel=on_cancel)

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
        except (TailrunError, StorageError) as error:
            stop.set()
            return error
        except OSError as error:
            stop.set()
            return StorageError(f"A file could not be brought over: {error.strerror}.")
        return None

    for error in list(pool.map(one, items)):
        if error is not None:
            raise error
