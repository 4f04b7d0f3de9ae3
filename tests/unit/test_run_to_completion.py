"""Work comes to its own end however often, and by whomever, its caller is cancelled."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from tailrun.process.aio import run_to_completion


class Work:
    """Ends when it is told to; counts how it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.may_end, self.began = asyncio.Event(), asyncio.Event()
        self.ended = False
        self.asked = 0
        self.error = error

    async def run(self) -> str:
        self.began.set()
        await self.may_end.wait()
        self.ended = True
        if self.error is not None:
            raise self.error
        return "done"

    def ask(self) -> None:
        self.asked += 1


async def test_the_result_comes_back() -> None:
    work = Work()
    work.may_end.set()
    assert await run_to_completion(work.run()) == "done"


async def test_an_error_comes_back() -> None:
    work = Work(ValueError("no"))
    work.may_end.set()
    with pytest.raises(ValueError, match="no"):
        await run_to_completion(work.run())


@pytest.mark.parametrize("error", [None, ValueError("no")])
async def test_a_caller_that_is_cancelled_again_and_again_waits_for_the_end(error: Exception | None) -> None:
    work = Work(error)
    caller = asyncio.create_task(run_to_completion(work.run(), work.ask))
    await work.began.wait()
    for _ in range(5):
        caller.cancel()
        await asyncio.sleep(0)
    assert (caller.done(), work.ended, work.asked) == (False, False, 1)
    work.may_end.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await caller
    assert work.ended
    assert caught.value.__cause__ is error


async def test_work_that_is_cancelled_itself_is_no_error_of_its_own() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    caller = asyncio.create_task(run_to_completion(task, task.cancel))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert task.cancelled()


def test_a_cancelled_scope_of_anyio_does_not_keep_the_loop_busy() -> None:
    """Such a scope, as around each request, cancels its tasks in every turn of the loop."""

    class CountingLoop(asyncio.SelectorEventLoop):
        turns = 0

        def _run_once(self) -> None:
            self.turns += 1
            super()._run_once()  # pyright: ignore[reportAttributeAccessIssue]

    async def main() -> bool:
        work = Work()
        asyncio.get_running_loop().call_later(0.3, work.may_end.set)
        with anyio.move_on_after(0):
            await run_to_completion(work.run())
        return work.ended

    loop = CountingLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert runner.run(main())
        assert loop.turns < 100
