"""Periodic work: its rounds, its pauses, what it logs, and its end. In virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict
from support import virtual_loop

from app.core.errors import StorageError
from app.core.periodic import Leadership, Periodic, going_on
from app.core.telemetry import PERIODIC_ERRORS


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as caught:
        yield caught


def now() -> float:
    return asyncio.get_running_loop().time()


class Rounds:
    """Work that notes when each round began, and does then what `each` says."""

    def __init__(self, each: Callable[[int], Awaitable[object] | None] = lambda _n: None) -> None:
        self.at: list[float] = []
        self._each = each

    async def __call__(self) -> None:
        self.at.append(now())
        doing = self._each(len(self.at))
        if doing is not None:
            await doing

    def pauses(self) -> list[float]:
        return [later - before for before, later in zip(self.at, self.at[1:], strict=False)]


def go_on(work: Periodic, seconds: float) -> None:
    """Have it done for so long."""

    async def main() -> None:
        async with going_on([work]):
            await asyncio.sleep(seconds)

    virtual_loop.run(main())


def broken(name: str) -> float:
    [value] = [s.value for s in PERIODIC_ERRORS.labels(name)._child_samples() if s.name == "_total"]
    return value


def test_rounds_come_at_once_and_then_in_jittered_intervals() -> None:
    rounds = Rounds()
    go_on(Periodic("w", 10, rounds, dice=Random(1)), 1000)
    assert rounds.at[0] == 0
    assert all(9 <= pause <= 11 for pause in rounds.pauses())
    assert len(set(rounds.pauses())) > 50


def test_the_interval_may_depend_on_the_last_round() -> None:
    rounds = Rounds()
    go_on(Periodic("w", lambda: 1 if len(rounds.at) < 3 else 100, rounds), 50)
    assert len(rounds.at) == 3


def test_a_round_can_be_asked_for_at_once() -> None:
    async def main() -> None:
        rounds = Rounds()
        work = Periodic("w", 1000, rounds)
        async with going_on([work]):
            await asyncio.sleep(1)
            work.soon()
            await asyncio.sleep(1)
        assert rounds.at == [0, 1]

    virtual_loop.run(main())


def test_an_unexpected_error_is_counted_logged_and_does_not_end_the_work(logs: list[EventDict]) -> None:
    """The pauses grow; after a good round they begin anew."""

    def each(n: int) -> None:
        if n <= 8 or n == 10:
            raise KeyError(n)

    rounds, before = Rounds(each), broken("breaks")
    go_on(Periodic("breaks", 1, rounds, again_most_s=20), 110)
    assert [round(pause) for pause in rounds.pauses()[:6]] == pytest.approx([1, 2, 4, 8, 16, 20], rel=0.15)
    assert 0.9 <= rounds.pauses()[8] <= 1.1
    assert broken("breaks") - before == 9
    errors = [line for line in logs if line["log_level"] == "error"]
    assert [type(line["exc_info"]) for line in errors] == [KeyError] * 9
    assert {line["work"] for line in errors} == {"breaks"}


async def cancelled_task() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


def test_a_cancellation_that_nobody_asked_for_does_not_end_the_work() -> None:
    """A round that awaits a task which somebody else cancelled raises what one does that is told to stop."""
    rounds, before = Rounds(lambda n: cancelled_task() if n == 1 else None), broken("cancels")
    go_on(Periodic("cancels", 1, rounds), 10)
    assert len(rounds.at) > 5
    assert broken("cancels") - before == 1


def test_a_server_that_is_away_delays_nothing_and_is_logged_ever_more_seldom(
    logs: list[EventDict],
) -> None:
    def each(n: int) -> None:
        if n <= 20:
            raise StorageError("away")

    rounds, before = Rounds(each), broken("waits")
    go_on(Periodic("waits", 1, rounds), 40)
    assert all(0.9 <= pause <= 1.1 for pause in rounds.pauses())
    assert [line["tried"] for line in logs if line["log_level"] == "warning"] == [1, 2, 4, 8, 16]
    assert [line["failed"] for line in logs if line["log_level"] == "info"] == [20]
    assert broken("waits") == before


async def stubborn(seconds: float) -> None:
    """Takes its cancellation for that of something inside."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(seconds)


@pytest.mark.parametrize(
    "doing",
    [
        pytest.param(lambda: asyncio.sleep(0), id="between two rounds"),
        pytest.param(lambda: asyncio.sleep(10_000), id="within a round"),
        pytest.param(lambda: stubborn(10_000), id="work that swallows it"),
    ],
)
@pytest.mark.parametrize("led", [True, False])
def test_it_stops_at_once(doing: Callable[[], Coroutine[Any, Any, None]], led: bool) -> None:
    async def lead(_role: str, _ttl_s: float) -> bool:
        return True

    async def main() -> None:
        rounds = Rounds(lambda _n: doing())
        work = Periodic("w", 1000, rounds, lead=lead if led else None)
        work.start()
        await asyncio.sleep(5)
        await work.stop()
        assert now() == 5
        assert len(rounds.at) == 1
        assert len(asyncio.all_tasks()) == 1, "nothing is left"

    virtual_loop.run(main())


class Redis:
    """Says who leads."""

    def __init__(self) -> None:
        self.leader: str | None = "me"
        self.silent = False
        self.asked: list[float] = []

    async def lead(self, _role: str, _ttl_s: float) -> bool:
        self.asked.append(now())
        if self.silent:
            await asyncio.sleep(10_000)
        if self.leader is None:
            raise StorageError("away")
        return self.leader == "me"


@pytest.mark.parametrize(("every_s", "ttl_s"), [(1, 5), (5, 15), (20, 60), (600, 1800)])
def test_a_leadership_lasts_for_three_rounds(every_s: float, ttl_s: float) -> None:
    assert Leadership(Redis().lead, "w", every_s).ttl_s == ttl_s


def test_who_leads_asks_in_the_last_two_thirds_of_its_time_and_who_does_not_each_round() -> None:
    async def main() -> None:
        redis = Redis()
        leadership = Leadership(redis.lead, "w", 1)
        for _ in range(12):
            assert await leadership.held()
            await asyncio.sleep(0.5)
        assert redis.asked == [0, 2, 4]
        redis.leader = "other"
        assert not await leadership.held()
        assert not await leadership.held()
        assert redis.asked == [0, 2, 4, 6, 6]

    virtual_loop.run(main())


def test_a_long_round_stays_the_leaders_own_and_ends_when_another_leads() -> None:
    async def main() -> None:
        redis, ended = Redis(), list[float]()

        async def long() -> None:
            try:
                await asyncio.sleep(10_000)
            finally:
                ended.append(now())

        idle = list[float]()
        work = Periodic("w", 1, long, lead=redis.lead, on_idle=lambda: idle.append(now()))
        async with going_on([work]):
            await asyncio.sleep(100)
            assert not ended
            assert len(redis.asked) >= 100 / 5, "it is renewed before it runs out"
            redis.leader = "other"
            await asyncio.sleep(5)
            assert len(ended) == 1
            assert idle

    virtual_loop.run(main())


@pytest.mark.parametrize("silent", [True, False])
def test_a_round_goes_on_while_redis_is_away_until_the_leaders_time_has_run_out(silent: bool) -> None:
    """Whether it refuses, or says nothing for longer than a leadership lasts."""

    async def main() -> None:
        redis, working = Redis(), 0

        async def long() -> None:
            nonlocal working
            working += 1
            try:
                await asyncio.sleep(10_000)
            finally:
                working -= 1

        async with going_on([Periodic("w", 1, long, lead=redis.lead)]):
            await asyncio.sleep(10)
            redis.leader, redis.silent = None, silent
            await asyncio.sleep(5 / 2)
            assert working == 1, "not before its time had run out"
            await asyncio.sleep(5 / 2)
            assert working == 0, "not longer than its time"

    virtual_loop.run(main())


def test_an_error_of_the_question_who_leads_is_seen_too() -> None:
    async def lead(_role: str, _ttl_s: float) -> bool:
        raise KeyError("role")

    before = broken("asks")
    go_on(Periodic("asks", 1, Rounds(), lead=lead), 10)
    assert broken("asks") - before >= 3
