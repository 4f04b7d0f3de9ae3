"""Many blocking transfers at once, with one outcome: all done, or the first error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import TypeVar

from app.errors import StorageError, TailrunError

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
