"""Waits for work that must come to its own end, whatever becomes of the caller."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def run_to_completion(task: asyncio.Task[T], on_cancel: Callable[[], object]) -> T:
    """Return the result of `task`. A caller that is cancelled asks it to end and waits on for that.

    `on_cancel` is called once, however often the caller is cancelled; the task's clean-up runs
    to its end, and then the cancellation is raised.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        on_cancel()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # retrieved: the cancellation is raised instead
        raise
