"""When a lane of the log writer sends, and what is in its queue meanwhile; in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from support.virtual_loop import run

from app.stream.lane import Lane, LaneQueue


class Calls:
    """A lane whose calls take `takes_s`; when each began, and what it sent."""

    def __init__(self, *, takes_s: float = 0.0, eager: bool = False) -> None:
        self.lane = Lane[str](self._send, every=1.0, most=3, eager=eager)
        self.sent: list[tuple[float, list[str]]] = []
        self._takes_s = takes_s

    async def _send(self) -> None:
        items, count = self.lane.queue.head()
        self.sent.append((asyncio.get_running_loop().time(), items))
        await asyncio.sleep(self._takes_s)
        self.lane.queue.remove(count)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.lane.run())
        await asyncio.sleep(0)
        yield
        self.lane.close()
        await task

    def add(self, *items: str) -> None:
        for item in items:
            self.lane.add(item, self.lane.queue.sent + self.lane.queue.events + 1, 1)


def test_an_eager_lane_sends_the_first_item_at_once_and_the_next_after_its_pause() -> None:
    async def work() -> None:
        calls = Calls(takes_s=0.25, eager=True)
        async with calls.running():
            calls.add("a")
            await asyncio.sleep(0.1)
            calls.add("b")
            await asyncio.sleep(2)
        assert calls.sent == [(0.0, ["a"]), (1.0, ["b"])]

    run(work())


def test_another_lane_waits_first_and_pauses_from_the_end_of_a_call() -> None:
    async def work() -> None:
        calls = Calls(takes_s=0.25)
        async with calls.running():
            calls.add("a")
            await asyncio.sleep(1.1)
            calls.add("b")
            await asyncio.sleep(2)
        assert calls.sent == [(1.0, ["a"]), (2.25, ["b"])]

    run(work())


def test_a_lane_does_not_wait_once_it_has_enough_or_is_hurried() -> None:
    async def work() -> None:
        calls = Calls()
        async with calls.running():
            calls.add("a", "b")
            await asyncio.sleep(0.5)
            calls.add("c")
            await asyncio.sleep(0.25)
            calls.add("d")
            calls.lane.hurry()
            await asyncio.sleep(0.125)
            calls.add("e")
            await asyncio.sleep(2)
        assert calls.sent == [(0.5, ["a", "b", "c"]), (0.75, ["d"]), (1.75, ["e"])]

    run(work())


def test_a_hurry_with_nothing_queued_is_not_kept_for_later() -> None:
    async def work() -> None:
        calls = Calls()
        async with calls.running():
            calls.lane.hurry()
            await asyncio.sleep(0.5)
            calls.add("a")
            await asyncio.sleep(2)
        assert calls.sent == [(1.0, ["a"])]

    run(work())


def test_a_closed_lane_leaves_what_is_queued() -> None:
    async def work() -> None:
        calls = Calls()
        async with calls.running():
            calls.add("a")
        assert (calls.sent, calls.lane.queue.head()[0]) == ([], ["a"])

    run(work())


def test_what_a_call_raises_ends_the_lane_and_the_item_stays() -> None:
    async def work() -> None:
        async def send() -> None:
            raise TypeError("a mistake")

        lane = Lane[str](send, every=1.0, most=3)
        lane.add("a", 1, 1)
        with pytest.raises(TypeError, match="a mistake"):
            await lane.run()
        assert lane.queue.head()[0] == ["a"]

    run(work())


def test_what_was_skipped_during_a_call_is_not_removed_twice() -> None:
    """While Redis is away what is committed leaves the queue, also from under a call that then succeeds."""
    queue = LaneQueue[str]()
    for n in range(1, 6):
        queue.add(f"item {n}", n * 10, 1)
    assert queue.head(25) == (["item 1", "item 2", "item 3"], 3)
    queue.skip(25)
    assert (queue.sent, len(queue)) == (20, 3)
    queue.remove(3)
    assert (queue.sent, queue.bytes, queue.head()[0]) == (30, 2, ["item 4", "item 5"])
    queue.skip(1000)
    assert (queue.sent, queue.events, queue.bytes) == (50, 0, 0)
