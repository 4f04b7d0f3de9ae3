"""The end of a checkout: written back to the end, whatever happens to the task meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import pytest

from app.core.errors import LostOwnership, TooLarge
from app.storage.workspace import Checkout, checked_out


class Store:
    """Takes its time to write back."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.done = False
        self.checkout = Checkout(Path("work"), [])

    async def write_back(self) -> None:
        self.begun.set()
        for _ in range(50):
            await asyncio.sleep(0)
        self.done = True


@pytest.mark.parametrize("fails", [False, True])
async def test_a_task_cancelled_again_and_again_writes_back_first(fails: bool) -> None:
    store = Store()

    async def tool() -> None:
        async with checked_out(store.checkout, store.write_back):
            if fails:
                raise ZeroDivisionError

    task = asyncio.ensure_future(tool())
    await store.begun.wait()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert store.done
    assert task.cancelled()


async def test_a_cancelled_scope_writes_back_first() -> None:
    store = Store()
    with anyio.CancelScope() as scope:
        async with checked_out(store.checkout, store.write_back):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert store.done


async def test_a_lost_run_writes_nothing_back() -> None:
    store = Store()
    with pytest.raises(LostOwnership):
        async with checked_out(store.checkout, store.write_back):
            raise LostOwnership
    assert not store.begun.is_set()


async def test_the_error_of_the_body_has_a_note_about_what_was_not_kept() -> None:
    async def refuse() -> None:
        raise TooLarge("big: over the limit")

    with pytest.raises(ZeroDivisionError) as caught:
        async with checked_out(Checkout(Path("work"), []), refuse):
            raise ZeroDivisionError
    assert "big: over the limit" in caught.value.__notes__[0]
