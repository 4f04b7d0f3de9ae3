"""Places for programs: who waits goes first, and a place is never lost, whoever gives up in between."""

from __future__ import annotations

import asyncio

from app.execution.program_slots import ProgramSlots
from tailrun.process.stop import StopReason, StopToken


async def test_who_waits_gets_the_place_that_comes_free_and_nothing_is_claimed_for_it() -> None:
    slots = ProgramSlots(1)
    slots.take()
    first, second = (asyncio.create_task(slots.wait(StopToken())) for _ in range(2))
    await asyncio.sleep(0)
    assert slots.free == -2
    slots.give()
    assert await first
    assert not second.done()
    assert (slots.used, slots.free) == (1, -1)
    slots.give()
    assert await second
    slots.give()
    assert (slots.used, slots.free) == (0, 1)
    assert slots.freed.is_set()


async def test_a_run_that_is_to_stop_does_not_wait_any_longer() -> None:
    slots, stop = ProgramSlots(1), StopToken()
    slots.take()
    waiting = asyncio.create_task(slots.wait(stop))
    await asyncio.sleep(0)
    stop.stop(StopReason.CANCEL)
    assert not await waiting
    assert slots.free == 0


async def test_a_place_that_came_as_its_run_was_broken_off_is_given_back() -> None:
    slots = ProgramSlots(1)
    slots.take()
    waiting = asyncio.create_task(slots.wait(StopToken()))
    await asyncio.sleep(0)
    slots.give()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert slots.free == 1


async def test_what_was_taken_beyond_the_limit_is_given_back_first() -> None:
    slots = ProgramSlots(1)
    slots.take()
    slots.take()
    waiting = asyncio.create_task(slots.wait(StopToken()))
    await asyncio.sleep(0)
    slots.give()
    await asyncio.sleep(0)
    assert not waiting.done()
    slots.give()
    assert await waiting
    assert slots.used == 1
