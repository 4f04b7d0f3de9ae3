"""Waits for work that must come to its own end, whatever becomes of the caller."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def run_to_completion(
    work: asyncio.Future[T] | Coroutine[Any, Any, T], on_cancel: Callable[[], object] | None = None
) -> T:
    """Return the result of `work`; a caller that is cancelled waits on for its end first.

    `on_cancel` is called once, however often the caller is cancelled: it asks the work to be short. An
    error of the work is then the cause of the cancellation.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError as cancelled:
        if on_cancel is not None:
            on_cancel()
        await _ended(task)
        raise cancelled from None if task.cancelled() else task.exception()
    return task.result()


async def _ended(task: asyncio.Future[Any]) -> None:
    """Wait for `task`; the caller is already cancelled, and may be cancelled again and again.

    A cancelled scope of anyio, as around each request, does so in every turn of the loop unless shielded.
    """
    import anyio  # noqa: PLC0415 - only who is cancelled needs it

    with anyio.CancelScope(shield=True):
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((task,))
