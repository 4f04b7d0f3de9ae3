"""Any interleaving of publish, commit, trim, loss, reconnect and late viewers: 1..n, each once, in order.

The real feed, viewers and backfill run in virtual time over a model of Redis and database.
Two mutations of the join, both seen in the wild, must make the property fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.stream_fixtures import end, log, seqs
from support.virtual_loop import run

from app.core.errors import StorageError
from app.core.events import Entry, Event
from app.core.models import RunStatus
from app.stream.feed import FeedLimits, RunFeed
from app.stream.history import Backfill
from app.stream.reader import LiveReader

RUN = "r"

Op = tuple[str, int]
STEPS = (
    *("write", "write", "commit", "trim", "deliver", "deliver", "drop", "double", "confirm", "settle"),
    *("disconnect", "join", "tick", "redis_away", "database_away", "wait"),
)
OPS = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7)), min_size=5, max_size=60)
# Commits and trims that fall between two reads of one viewer: rare among all operations.
CLOSE_OPS = st.lists(
    st.tuples(st.sampled_from(("join", "write", "settle", "tick")), st.integers(0, 3)),
    min_size=5,
    max_size=60,
)


class World:
    """Redis and database as a log writer leaves them; every answer takes a drawn number of turns."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.committed = 0
        self.trimmed = 0  # the tail holds what lies above
        self.flight: list[bytes] = []
        self.subscribed = True
        self.redis_away = self.database_away = False
        self.turns = 1

    async def _answer(self, away: Callable[[], bool]) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        if away():
            raise StorageError("away")

    # As Tail
    async def read(
        self, run_id: str, after: int, limit: int | None = None, *, per_call: int = 64
    ) -> list[Entry]:
        """As if every call to the publisher had brought three events."""
        await self._answer(lambda: self.redis_away)
        found = [(event.seq, event.encode()) for event in self.events[max(after, self.trimmed) :]]
        await asyncio.sleep(0)
        return found if limit is None else found[: limit + -(after + limit) % 3]

    async def top(self, run_id: str) -> int:
        await self._answer(lambda: self.redis_away)
        return len(self.events) if len(self.events) > self.trimmed else 0

    # As stores
    async def history(self, run_id: str, after: int, limit: int) -> list[Event]:
        await self._answer(lambda: self.database_away)
        found = self.events[after : self.committed]
        await asyncio.sleep(0)
        return found[:limit]

    async def heads(self, run_ids: Sequence[str]) -> dict[str, tuple[int, RunStatus]]:
        await self._answer(lambda: self.database_away)
        ended = self.committed == len(self.events) and bool(self.events) and self.events[-1].type == "end"
        return {RUN: (self.committed, RunStatus.SUCCEEDED if ended else RunStatus.RUNNING)}

    def write(self, *events: Event) -> None:
        self.events += events
        if self.subscribed:
            self.flight.append(b"\n".join(event.encode() for event in events))

    def log(self, count: int) -> None:
        top = len(self.events)
        self.write(*(log(RUN, top + 1 + index) for index in range(count)))


class HistoryFirst(LiveReader):
    """A broken join: history once, then live from wherever the subscription happens to begin."""

    _joined = False

    async def next(self) -> object:
        while not self._joined:
            try:
                chunk = await self._pages.take(self.cursor)
            except StorageError:
                await asyncio.sleep(0.1)
                continue
            if not chunk:
                self._joined = True
                while self._feed._ring.last is None:
                    await asyncio.sleep(0.1)
                self.cursor = max(self.cursor, self._feed._ring.floor)
                break
            self.cursor = chunk[-1][0]
            return self._encode(chunk)
        return await super().next()


class DatabaseFirst(Backfill):
    """A broken read: the database first, and then what the tail has after it."""

    async def fetch(self, run_id: str, after: int, limit: int = 500) -> list[Entry]:
        page = [(event.seq, event.encode()) for event in await self._history(run_id, after, limit)]
        top = page[-1][0] if page else after
        return page + await self._tail.read(run_id, top, limit)


class Play:
    """One example: a feed, its viewers, and the operations on the world around them."""

    def __init__(self, viewer: type[LiveReader], backfill: type[Backfill]) -> None:
        self.world = World()
        self.backfill = backfill(self.world, self.world.history, self.world.heads)  # pyright: ignore[reportArgumentType]
        self.feed = RunFeed(RUN, self.backfill, FeedLimits(ring_lines=4, ring_bytes=3_000))
        self.viewer = viewer
        self.readers: list[tuple[int, asyncio.Task[list[int]]]] = []

    async def play(self, ops: list[Op]) -> None:
        self.feed.catch_up()
        self.join(0)
        for name, number in ops:
            await self.step(name, number)
            for _ in range(number):
                await asyncio.sleep(0)
        await self.finish()

    async def step(self, name: str, number: int) -> None:
        """Do what the operation is called after; those on messages in flight need one."""
        if name in {"deliver", "double", "drop"} and not self.world.flight:
            return
        done = getattr(self, name)(number)
        if done is not None:
            await done

    def write(self, number: int) -> None:
        self.world.log(1 + number)

    def commit(self, number: int) -> None:
        self.world.committed = min(len(self.world.events), self.world.committed + number)

    def trim(self, number: int) -> None:
        self.world.trimmed = min(self.world.committed, self.world.trimmed + number)

    def settle(self, _number: int) -> None:
        self.world.trimmed = self.world.committed = len(self.world.events)

    def deliver(self, number: int) -> None:
        self.feed.message(self.world.flight.pop(number % len(self.world.flight)))

    def double(self, number: int) -> None:
        self.feed.message(self.world.flight[number % len(self.world.flight)])

    def drop(self, number: int) -> None:
        self.world.flight.pop(number % len(self.world.flight))

    def disconnect(self, _number: int) -> None:
        self.world.subscribed = False
        self.world.flight.clear()

    def confirm(self, _number: int) -> None:
        self.world.subscribed = True
        self.feed.confirmed()

    def redis_away(self, _number: int) -> None:
        self.world.redis_away = not self.world.redis_away

    def database_away(self, _number: int) -> None:
        self.world.database_away = not self.world.database_away

    async def wait(self, number: int) -> None:
        await asyncio.sleep(number / 4)

    def join(self, number: int) -> None:
        after = min(number, len(self.world.events))

        async def watch() -> list[int]:
            viewer = self.viewer(self.feed, self.backfill, after, seqs)
            got: list[int] = []
            while (payload := await viewer.next()) is not None:
                got += payload
            assert viewer.finished
            return got

        self.readers.append((after, asyncio.ensure_future(watch())))

    async def tick(self, number: int) -> None:
        """What the hub does every second; from now on answers take `number` turns."""
        self.world.turns = number
        for head, status in (await self.backfill.heads([RUN])).values():
            self.feed.compare(head, status)
        if not self.world.redis_away:
            self.feed.compare(len(self.world.events))

    async def finish(self) -> None:
        """The run ends, all is committed, its last messages are lost: nobody may hang."""
        world = self.world
        world.redis_away = world.database_away = False
        world.write(end(RUN, len(world.events) + 1))
        world.committed = len(world.events)
        ticking = asyncio.ensure_future(self._tick_on())
        try:
            for after, viewer in self.readers:
                got = await asyncio.wait_for(viewer, 60)
                assert got == list(range(after + 1, len(world.events) + 1))
        finally:
            ticking.cancel()
            for _, viewer in self.readers:
                viewer.cancel()
            self.feed.close()
            await asyncio.gather(ticking, *(task for _, task in self.readers), return_exceptions=True)

    async def _tick_on(self) -> None:
        while True:
            await asyncio.sleep(1)
            await self.tick(1)


def streams_are_whole(
    viewer: type[LiveReader],
    backfill: type[Backfill],
    strategy: st.SearchStrategy[list[Op]],
    examples: int,
    *phases: Phase,
) -> Callable[[], None]:
    @settings(max_examples=examples, database=None, phases=phases or tuple(Phase))
    @given(strategy)
    def hold(ops: list[Op]) -> None:
        async def play() -> None:
            await Play(viewer, backfill).play(ops)

        run(play())

    return hold


@pytest.mark.parametrize("strategy", [OPS, CLOSE_OPS], ids=["all", "close"])
def test_each_viewer_gets_each_event_once_in_order(strategy: st.SearchStrategy[list[Op]]) -> None:
    """The property."""
    streams_are_whole(LiveReader, Backfill, strategy, 200)()


@pytest.mark.parametrize(
    ("viewer", "backfill", "strategy"),
    [(HistoryFirst, Backfill, OPS), (LiveReader, DatabaseFirst, CLOSE_OPS)],
    ids=["join", "order of reading"],
)
def test_a_broken_join_is_found(
    viewer: type[LiveReader], backfill: type[Backfill], strategy: st.SearchStrategy[list[Op]]
) -> None:
    """The property can fail: history before subscribe, or the database before the tail, loses lines."""
    with pytest.raises(AssertionError):
        streams_are_whole(viewer, backfill, strategy, 2_000, Phase.generate)()
