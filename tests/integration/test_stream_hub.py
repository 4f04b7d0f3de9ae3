"""The hub over a real Redis: each viewer gets 1..n, each once and in order, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.servers import RedisServer
from support.stream_fixtures import Committed, Writer, end, log, seqs, until

from app.core.errors import Unavailable
from app.core.events import Event, EventType
from app.core.models import RunStatus
from app.redis.clients import RedisClients
from app.redis.publisher import Tail
from app.stream.feed import FeedLimits
from app.stream.hub import StreamHub

RUN = "11111111-1111-4111-8111-111111111111"


class Site:
    """One API process's share: its connections and its hub."""

    def __init__(self, url: str, committed: Committed, **options: Any) -> None:
        self.clients = RedisClients(url)
        self.draining = asyncio.Event()
        self.hub = StreamHub(
            self.clients,
            Tail(self.clients),
            committed.history,
            committed.heads,
            draining=self.draining,
            **options,
        )

    async def watch(self, run_id: str = RUN, after: int = 0, got: list[int] | None = None) -> list[int]:
        got = [] if got is None else got
        with self.hub.follow(run_id, after, seqs) as reader:
            while (payload := await reader.next()) is not None:
                got += payload
        return got

    async def close(self) -> None:
        await self.hub.close()
        await self.clients.close()


@pytest.fixture
def committed() -> Committed:
    return Committed()


@pytest.fixture
async def site(redis_server: RedisServer, committed: Committed) -> AsyncIterator[Site]:
    site = Site(redis_server.url, committed)
    yield site
    await site.close()


@pytest.fixture
async def writer(site: Site, committed: Committed) -> Writer:
    return await Writer(site.clients, committed, RUN).open()


async def subscribers(site: Site, count: int) -> None:
    async def there() -> bool:
        return dict(await site.clients.commands.pubsub_numsub(f"agent:logs:{RUN}")) == {
            f"agent:logs:{RUN}".encode(): count
        }

    await until(there)


@pytest.mark.parametrize("turn", range(20))
async def test_early_late_and_second_viewers_get_all(site: Site, writer: Writer, turn: int) -> None:
    """A viewer that joins at any time gets every event once, in order."""
    early = asyncio.create_task(site.watch())
    await writer.lines(3)
    viewers = [early]
    for _ in range(10):
        await writer.lines(1 + turn)
        viewers.append(asyncio.create_task(site.watch()))
        if turn % 2:
            writer.commit()
        await asyncio.sleep(0)
    await writer.end()
    for got in await asyncio.wait_for(asyncio.gather(*viewers), 60):
        assert got == list(range(1, writer.seq + 1))


async def test_two_first_viewers_share_one_subscription(site: Site, writer: Writer) -> None:
    """First viewers that race for a run end up on one subscription, and none is left when they go."""
    viewers = [asyncio.create_task(site.watch()) for _ in range(50)]
    await subscribers(site, 1)
    assert site.hub.feeds == 1
    await writer.lines(5)
    await writer.end()
    assert await asyncio.gather(*viewers) == [[1, 2, 3, 4, 5, 6]] * 50
    await until(lambda: site.hub.feeds == 0)
    await subscribers(site, 0)
    assert site.hub.readers == 0


async def test_every_cursor_gets_the_rest(site: Site, writer: Writer) -> None:
    """A viewer that reconnects after any seq gets exactly what follows it."""
    await writer.lines(20)
    writer.commit()
    await writer.lines(20)
    viewers = [asyncio.create_task(site.watch(after=after)) for after in range(42)]
    await writer.lines(1)
    await writer.end()
    got = await asyncio.wait_for(asyncio.gather(*viewers), 60)
    assert got == [list(range(after + 1, 43)) for after in range(42)]


async def test_lost_messages_are_fetched(site: Site, writer: Writer, redis_server: RedisServer) -> None:
    """Killed pub/sub connections lose messages; viewers lose nothing."""
    viewer = asyncio.create_task(site.watch())
    await subscribers(site, 1)
    with redis_server.client() as client:
        for turn in range(30):
            await writer.lines(3)
            if turn % 3 == 0:
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await writer.end()
    assert await asyncio.wait_for(viewer, 60) == list(range(1, writer.seq + 1))


async def test_a_lost_last_message_hangs_nobody(site: Site, writer: Writer, committed: Committed) -> None:
    """An end that was committed and never published is found by comparing."""
    viewer = asyncio.create_task(site.watch())
    await writer.lines(2)
    await subscribers(site, 1)
    event = log(RUN, 3)
    committed.commit([log(RUN, 1), log(RUN, 2), event])
    await until(lambda: committed.asked > 0)
    committed.commit([end(RUN, 4)])
    assert await asyncio.wait_for(viewer, 60) == [1, 2, 3, 4]


async def test_a_cursor_behind_the_ring_pages(redis_server: RedisServer, committed: Committed) -> None:
    """Viewers whom the ring has left behind read on from history."""
    site = Site(redis_server.url, committed, feed_limits=FeedLimits(10, 2_000, 0.02))
    try:
        writer = await Writer(site.clients, committed, RUN).open()
        with site.hub.follow(RUN, 0, seqs) as slow:
            got: list[int] = await slow.next() if writer.seq else []
            await subscribers(site, 1)
            for _ in range(100):
                await writer.lines(25)
                writer.commit()
            await writer.end()
            while (payload := await slow.next()) is not None:
                got += payload
        assert got == list(range(1, writer.seq + 1))
    finally:
        await site.close()


async def test_truncated_stands_for_its_range(site: Site, committed: Committed) -> None:
    """A `truncated` in history covers from..to; no hole is seen there."""
    marker = Event(8, EventType.TRUNCATED, 1, RUN, 1, data={"from": 3, "to": 8, "lines": 6})
    committed.commit([log(RUN, 1), log(RUN, 2), marker, log(RUN, 9), end(RUN, 10)])
    assert await asyncio.wait_for(site.watch(), 60) == [1, 2, 8, 9, 10]
    assert await asyncio.wait_for(site.watch(after=5), 60) == [8, 9, 10]


async def test_a_real_loss_is_said(site: Site, committed: Committed) -> None:
    """A hole that neither tail nor database will fill becomes a `gap`, after a while."""
    committed.commit([log(RUN, 1), log(RUN, 2), log(RUN, 6), end(RUN, 7)])
    assert await asyncio.wait_for(site.watch(), 60) == [1, 2, 5, 6, 7]


async def test_redis_killed_and_restarted_under_viewers(tmp_path: Path, committed: Committed) -> None:
    """Redis dies under a stream and comes back empty: the database serves meanwhile, nothing is lost."""
    server = RedisServer(tmp_path / "r", appendonly=False).start()
    site = Site(server.url, committed)
    try:
        writer = await Writer(site.clients, committed, RUN).open()
        got: list[int] = []

        async def watch() -> None:
            with site.hub.follow(RUN, 0, seqs) as reader:
                while (payload := await reader.next()) is not None:
                    got.extend(payload)

        viewer = asyncio.create_task(watch())
        await writer.lines(10)
        writer.commit()
        await until(lambda: len(got) == 10)
        server.kill()
        committed.commit([log(RUN, 11), log(RUN, 12)])
        await until(lambda: len(got) == 12)
        server.start()
        await writer.open()
        writer.seq = 12
        await subscribers(site, 1)
        await writer.lines(5)
        await writer.end()
        await asyncio.wait_for(viewer, 60)
        assert got == list(range(1, 19))
    finally:
        await site.close()
        server.stop()


async def test_live_goes_on_while_the_database_is_away(
    site: Site, writer: Writer, committed: Committed
) -> None:
    """With the database away, lines come from Redis."""
    viewer = asyncio.create_task(site.watch())
    await writer.lines(1)
    await subscribers(site, 1)
    committed.away = True
    await writer.lines(10)
    await writer.end()
    assert await asyncio.wait_for(viewer, 60) == list(range(1, 13))


async def test_draining_ends_every_stream(site: Site, writer: Writer) -> None:
    """When the process drains, streams end, and no new one is admitted."""
    seen = [list[int]() for _ in range(20)]
    viewers = [asyncio.create_task(site.watch(got=got)) for got in seen]
    await writer.lines(3)
    await until(lambda: all(got[-1:] == [3] for got in seen))
    site.draining.set()
    assert await asyncio.wait_for(asyncio.gather(*viewers), 60) == [[1, 2, 3]] * 20
    with pytest.raises(Unavailable):
        site.hub.admit()


async def test_the_limit_is_a_clear_503(redis_server: RedisServer, committed: Committed) -> None:
    """Over the process's limit a stream is refused with a time to try again."""
    site = Site(redis_server.url, committed, limit=2)
    try:
        with site.hub.follow(RUN, 0, seqs), site.hub.follow(RUN, 0, seqs):
            with pytest.raises(Unavailable) as refused:
                site.hub.admit()
            assert refused.value.retry_after_s
        site.hub.admit()
    finally:
        await site.close()


async def test_history_is_read_once_for_all_who_come_back(site: Site, committed: Committed) -> None:
    """Fifty viewers at one cursor cost about as many questions as one."""
    committed.commit([log(RUN, seq) for seq in range(1, 2_001)])
    committed.commit([end(RUN, 2_001)])
    viewers = [asyncio.create_task(site.watch()) for _ in range(50)]
    for got in await asyncio.wait_for(asyncio.gather(*viewers), 60):
        assert got == list(range(1, 2_002))
    assert committed.asked < 50


class Mistaken(Committed):
    """A database whose first answers break the code that asked."""

    mistakes = 0

    async def heads(self, run_ids: Sequence[str]) -> dict[str, tuple[int, RunStatus]]:
        if self.mistakes < 4:
            self.mistakes += 1
            raise TypeError("a mistake")
        return await super().heads(run_ids)


async def test_a_comparison_that_broke_is_made_again(redis_server: RedisServer) -> None:
    """No mistake ends the rounds by which a quiet stream finds what it has missed."""
    committed = Mistaken()
    site = Site(redis_server.url, committed)
    watching = asyncio.create_task(site.watch())
    await until(lambda: committed.mistakes == 4)
    committed.commit([log(RUN, 1), end(RUN, 2)])
    assert await asyncio.wait_for(watching, 60) == [1, 2]
    await site.close()
