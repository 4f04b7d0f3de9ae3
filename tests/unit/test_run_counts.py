"""The figures of `/metrics`: exact while that is cheap, and a bounded share of the database beyond."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from app.core.errors import StorageError
from app.core.models import RunStatus
from app.routes.run_counts import EXACT_UP_TO, REST, RunCounts


class Runs:
    """A database in which counting takes a second per 100 000 runs."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, 0
        self.there = {RunStatus.QUEUED: 1, RunStatus.SUCCEEDED: 2}
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def count(self, states: Collection[RunStatus]) -> dict[RunStatus, int]:
        await self.gate.wait()
        if self.away:
            raise StorageError("away")
        found = {status: count for status, count in self.there.items() if status in states}
        self.asked += 1
        self.now += sum(found.values()) / 100_000
        return found


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_few_runs_are_counted_each_time() -> None:
    runs = Runs()
    counts = RunCounts(runs.count, lambda: runs.now)
    first = await counts.look()
    assert (first[RunStatus.QUEUED], first[RunStatus.SUCCEEDED], first[RunStatus.FAILED]) == (1, 2, 0)
    runs.there = {RunStatus.FAILED: 3}
    second = await counts.look()
    assert (second[RunStatus.QUEUED], second[RunStatus.SUCCEEDED], second[RunStatus.FAILED]) == (0, 0, 3)


async def test_many_runs_are_counted_beside_who_asks() -> None:
    """And not again before the rest is over; the few that wait are still exact."""
    runs = Runs()
    runs.there[RunStatus.SUCCEEDED] = 1_000_000
    counts = RunCounts(runs.count, lambda: runs.now)
    await counts.look()
    asked, runs.there = runs.asked, {RunStatus.QUEUED: 5, RunStatus.SUCCEEDED: 1_000_009}
    for _ in range(10):
        found = await counts.look()
    assert (found[RunStatus.QUEUED], found[RunStatus.SUCCEEDED]) == (5, 1_000_000)
    assert runs.asked == asked + 10
    runs.now += 10 * REST
    runs.gate.clear()
    waiting = asyncio.create_task(counts.look())
    await settle()
    runs.gate.set()
    await waiting
    await settle()
    assert (await counts.look())[RunStatus.SUCCEEDED] == 1_000_009


async def test_who_gives_up_waiting_does_not_end_the_count() -> None:
    """Else a count that takes longer than a scrape waits would never come to an end."""
    runs = Runs()
    runs.there[RunStatus.SUCCEEDED] = EXACT_UP_TO + 1
    runs.gate.clear()
    counts = RunCounts(runs.count, lambda: runs.now)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(counts.look(), 0.01)
    runs.gate.set()
    assert (await counts.look())[RunStatus.SUCCEEDED] == EXACT_UP_TO + 1
    assert runs.asked == 2, "one count of each kind served for both"


async def test_a_database_that_is_away_is_asked_again() -> None:
    runs = Runs()
    runs.away = True
    counts = RunCounts(runs.count, lambda: runs.now)
    with pytest.raises(StorageError):
        await counts.look()
    runs.away = False
    assert (await counts.look())[RunStatus.QUEUED] == 1


async def test_closing_ends_a_count() -> None:
    runs = Runs()
    runs.gate.clear()
    counts = RunCounts(runs.count, lambda: runs.now)
    asking = asyncio.create_task(counts.look())
    await settle()
    await counts.close()
    with pytest.raises(asyncio.CancelledError):
        await asking
