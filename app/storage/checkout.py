"""The end of a checkout: what a tool did is written back, however the tool ended.

A tool that failed, timed out or was cancelled has often made the very files that explain
it, so the end of a checkout runs to its end also for a cancelled task.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from app.errors import LostOwnership, StorageError, TailrunError
from app.storage.threads import finish
from app.storage.workspace import Checkout


@contextlib.asynccontextmanager
async def checked_out(
    checkout: Checkout,
    write_back: Callable[[], Coroutine[Any, Any, None]],
) -> AsyncGenerator[None]:
    """Run the body, then `write_back`; the body's own error goes first, with a note.

    Only `LostOwnership` writes nothing back: the files are somebody else's by now.
    """
    try:
        yield
    except LostOwnership:
        raise
    except BaseException as failure:
        try:
            await finish(write_back())
        except (TailrunError, StorageError) as error:
            failure.add_note(f"Not all files in {checkout.path} were kept: {error}")
        raise
    else:
        await finish(write_back())
