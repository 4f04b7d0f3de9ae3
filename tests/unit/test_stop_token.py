"""The stop token's race: a task against somebody who asks to stop, and against time."""

from __future__ import annotations

import asyncio

from tailrun.process.stop import StopReason, StopToken


async def test_a_task_that_ends_wins() -> None:
    task = asyncio.create_task(asyncio.sleep(0, "done"))
    await StopToken().race(task)
    assert task.result() == "done"


async def test_a_request_to_stop_wins_over_a_task_that_goes_on() -> None:
    """Whoever races decides what becomes of the task."""
    token, task = StopToken(), asyncio.create_task(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(token.stop, StopReason.CANCEL)
    await token.race(task)
    assert not task.done()
    await token.race(task)  # a request stands for good
    task.cancel()


async def test_time_wins_over_both() -> None:
    token, task = StopToken(), asyncio.create_task(asyncio.sleep(60))
    await token.race(task, 0.01)
    assert not token.stopped
    assert not task.done()
    task.cancel()


async def test_two_races_hear_of_one_request() -> None:
    token, task = StopToken(), asyncio.create_task(asyncio.sleep(60))
    races = [asyncio.create_task(token.race(task)) for _ in range(2)]
    await asyncio.sleep(0)
    token.stop(StopReason.DRAIN)
    token.stop(StopReason.LOST)
    await asyncio.gather(*races)
    assert token.reason is StopReason.LOST
    task.cancel()


async def test_a_run_that_is_lost_behind_another_reason_is_heard_of() -> None:
    """Whoever stops with a grace learns that there is none any more."""
    token = StopToken()
    lost = asyncio.create_task(token.lost())
    token.stop(StopReason.CANCEL)
    token.stop(StopReason.DRAIN)
    await asyncio.sleep(0)
    assert not lost.done()
    token.stop(StopReason.LOST)
    await lost
    assert token.reason is StopReason.LOST
