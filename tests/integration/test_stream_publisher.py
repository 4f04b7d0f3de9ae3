"""Fence, tail and channel in a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.servers import RedisServer

from app.core.events import Event, EventType
from app.redis.clients import RedisClients
from app.redis.publisher import LIVE_TTL_S, Publisher, PublishRefused, Tail


@pytest.fixture
async def clients(redis_server: RedisServer) -> AsyncIterator[RedisClients]:
    clients = RedisClients(redis_server.url)
    yield clients
    await clients.close()


def events(first: int, last: int) -> list[bytes]:
    return [b'{"seq":%d,"type":"log"}' % seq for seq in range(first, last + 1)]


async def test_the_first_append_raises_the_fence(clients: RedisClients) -> None:
    publisher, tail = Publisher(clients), Tail(clients)
    assert await publisher.append("r", 1, 1, events(1, 3), keep_from=0, may_raise=True) is None
    assert [seq for seq, _ in await tail.read("r", 0)] == [1, 2, 3]
    assert await clients.commands.get("agent:fence:r") == b"1"


async def test_without_a_fence_an_append_is_refused(clients: RedisClients) -> None:
    """A worker that was frozen until the fence expired must not publish."""
    assert await Publisher(clients).append("r", 1, 1, events(1, 1), keep_from=0) == PublishRefused(None)
    assert await clients.commands.keys() == []


async def test_a_later_attempt_shuts_out_the_earlier(clients: RedisClients) -> None:
    publisher, tail = Publisher(clients), Tail(clients)
    await publisher.append("r", 1, 1, events(1, 2), keep_from=0, may_raise=True)
    assert await publisher.raise_fence("r", 2) == 2
    assert await publisher.append("r", 1, 3, events(3, 3), keep_from=0, may_raise=True) == PublishRefused(2)
    assert await publisher.append("r", 2, 3, events(3, 3), keep_from=0) is None
    assert await tail.top("r") == 3


async def test_a_fence_never_falls(clients: RedisClients) -> None:
    publisher = Publisher(clients)
    await publisher.raise_fence("r", 10)
    assert LIVE_TTL_S - 60 < await clients.commands.ttl("agent:fence:r") <= LIVE_TTL_S
    assert await publisher.raise_fence("r", 9) == 10


async def test_an_append_may_be_repeated(clients: RedisClients) -> None:
    """After a lost reply the same events are sent again, maybe with more behind them."""
    publisher, tail = Publisher(clients), Tail(clients)
    await publisher.append("r", 1, 1, events(1, 3), keep_from=0, may_raise=True)
    await publisher.append("r", 1, 1, events(1, 5), keep_from=0)
    await publisher.append("r", 1, 2, events(2, 4), keep_from=0)
    assert await tail.read("r", 0) == list(enumerate(events(1, 5), start=1))


async def test_a_call_is_one_entry_and_is_read_from_any_seq(clients: RedisClients) -> None:
    """Entries of one event or of many, from the middle of one, too; a page ends where an entry does."""
    publisher, tail = Publisher(clients), Tail(clients)
    seq, ends = 1, [0]
    for size in (1, 2, 300, 1, 1, 1, 200, 5):
        batch = events(seq, seq + size - 1)
        assert await publisher.append("r", 1, seq, batch, keep_from=0, may_raise=True) is None
        seq += size
        ends.append(seq - 1)
    assert await clients.commands.xlen("agent:tail:r") == 8
    whole = list(enumerate(events(1, seq - 1), start=1))
    for after in (0, 1, 2, 3, 150, 303, 304, 510, 511, 600):
        assert await tail.read("r", after) == whole[after:]
        for limit in (1, 2, 199, 500):
            end = next((end for end in ends if end >= after + limit), seq)
            assert await tail.read("r", after, limit) == whole[after:end]


async def test_the_tail_is_trimmed_only_below_keep_from(clients: RedisClients) -> None:
    publisher, tail = Publisher(clients), Tail(clients)
    for first in range(1, 1001, 100):
        await publisher.append("r", 1, first, events(first, first + 99), keep_from=501, may_raise=True)
    seqs = [seq for seq, _ in await tail.read("r", 0)]
    assert seqs[-500:] == list(range(501, 1001))
    assert len(seqs) < 700
    await publisher.append("r", 1, 1001, events(1001, 1001), keep_from=1001)
    await publisher.append("r", 1, 1001, events(1001, 1001), keep_from=1001)
    assert await tail.top("r") == 1001


@pytest.mark.parametrize(("batch", "messages"), [(64, [b"\n".join(events(1, 3))]), (1, events(1, 3))])
async def test_watchers_get_messages(redis_server: RedisServer, batch: int, messages: list[bytes]) -> None:
    """Newline-joined events in one message; with LOG_BATCH=1 each event is its own."""
    clients = RedisClients(redis_server.url)
    pubsub = clients.pubsub_connection()
    await pubsub.subscribe("agent:logs:r")
    await Publisher(clients, batch=batch).append("r", 1, 1, events(1, 3), keep_from=0, may_raise=True)
    got: list[bytes] = []
    async with asyncio.timeout(60):
        while len(got) < len(messages):
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
            if message is not None:
                got.append(message["data"])
    assert got == messages
    await clients.close()


async def test_a_run_that_is_ended_outside_of_an_attempt_leaves_after_a_while(clients: RedisClients) -> None:
    publisher = Publisher(clients, tail_ttl_s=300)
    await publisher.append("r", 1, 1, events(1, 1), keep_from=0, may_raise=True)
    await publisher.announce([Event(2, EventType.STATUS, 1, "r", 1)])
    assert await clients.commands.ttl("agent:fence:r") > 300
    await publisher.announce([Event(3, EventType.END, 1, "r", 2)])
    assert 290 < await clients.commands.ttl("agent:tail:r") <= 300
    assert 290 < await clients.commands.ttl("agent:fence:r") <= 300


async def test_fence_and_tail_of_an_ended_run_go_after_a_while(clients: RedisClients) -> None:
    publisher = Publisher(clients, tail_ttl_s=60)
    await publisher.append("r", 1, 1, events(1, 3), keep_from=0, may_raise=True)
    assert LIVE_TTL_S - 60 < await clients.commands.ttl("agent:tail:r") <= LIVE_TTL_S
    await publisher.append("r", 1, 4, events(4, 4), keep_from=0, ended=True)
    for key in ("agent:tail:r", "agent:fence:r"):
        assert 0 < await clients.commands.ttl(key) <= 60
