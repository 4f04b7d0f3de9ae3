"""Short commands over Upstash's REST API: the same replies, once each, and one server behind both ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from support.api_server import changed, serving
from support.redis_exercise import EVENT
from support.servers import RedisServer
from support.stack import Stack, seqs, shell, wait_for
from support.upstash_proxy import TOKEN, RestProxy, rest_proxy

from app.config import Settings
from app.core.events import EventType
from app.core.models import Job
from app.redis.claims import Claims
from app.redis.clients import RedisClients, RedisDown
from app.redis.publisher import Publisher, PublishRefused, Tail
from app.redis.queue import DeadLetters, Queue


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[RestProxy]:
    with rest_proxy(redis_server) as proxy:
        yield proxy


def settings(proxy: RestProxy, url: str | None = None, token: str = TOKEN) -> Settings:
    return Settings(
        redis_url=SecretStr(url) if url else None,
        upstash_redis_rest_url=proxy.url,
        upstash_redis_rest_token=SecretStr(token),
    )


@pytest.fixture
async def rest(proxy: RestProxy) -> AsyncIterator[RedisClients]:
    """An API's clients that have nothing but REST."""
    clients = RedisClients.for_api(settings(proxy).redis)
    yield clients
    await clients.close()


@pytest.fixture
async def direct(redis_server: RedisServer) -> AsyncIterator[RedisClients]:
    """A worker's clients."""
    clients = RedisClients(redis_server.url)
    yield clients
    await clients.close()


async def test_every_short_command_answers_as_the_redis_protocol_does(
    rest: RedisClients, direct: RedisClients, proxy: RestProxy
) -> None:
    """The same calls over both ways, on the same data."""
    claims = Claims(direct, "w1", 5)
    for n in range(3):
        assert await Queue(rest).push(Job(f"r{n}", type="überprüfen"), 0)
    assert not await Queue(rest).push(Job("r0"), 0), "the mark is there"
    await Queue(rest).push_delayed(Job("late"), 99_000_000)
    first, second = (await claims.claim(2)).entries
    await claims.dead_letter(first, "malformed", 1, {"message": "schön \u2028 'quoted' \\"})
    publisher = Publisher(direct)
    await publisher.append("r1", 1, 1, [EVENT.encode()] * 3, keep_from=0, may_raise=True)

    async def seen(clients: RedisClients) -> list[Any]:
        queue, tail = Queue(clients), Tail(clients)
        depth = await queue.depth()
        return [
            (depth.pending, depth.delayed, depth.dead, depth.processing, list(depth.workers)),
            0 < depth.workers["w1"] <= 5,
            [page async for page in queue.known_runs()],
            [await queue.worker_alive(name) for name in ("w1", "w2")],
            [await queue.worker_gone(name) for name in ("w1", "w2")],
            await DeadLetters(clients).page(0, 10),
            [await tail.read("r1", after, 2) for after in (0, 1, 3)],
            await tail.tops(["r1", "none"]),
            await Publisher(clients).raise_fence("r1", 1),
            await Publisher(clients).append("r1", 7, 4, [b"{}"], keep_from=0),
            await clients.commands.get("none"),
            await clients.commands.lrange("none", 0, -1),
        ]

    await direct.commands.script_flush()
    assert await seen(rest) == await seen(direct)
    assert await Publisher(rest).append("r1", 7, 4, [b"{}"], keep_from=0) == PublishRefused(1)
    await Publisher(rest).announce([replace(EVENT, type=EventType.END)])
    assert 0 < await direct.commands.ttl("agent:tail:r1") <= 300
    assert await DeadLetters(rest).remove(await DeadLetters(rest).named("r0")) == 1
    assert (await Queue(direct).depth()).dead == 0
    assert abs(await Queue(rest).time_us() - await Queue(direct).time_us()) < 5_000_000
    assert second
    assert "EVAL" in proxy.names, "the server did not know the scripts at first"


async def test_a_published_message_arrives(rest: RedisClients, direct: RedisClients) -> None:
    """STOP signals and committed events go out over REST, and are heard over the Redis protocol."""
    pubsub = direct.pubsub_connection()
    await pubsub.subscribe("agent:control", "agent:logs:r1")
    for _ in range(2):
        await pubsub.get_message(timeout=60)
    await Publisher(rest).signal("r1", "STOP")
    await Publisher(rest).announce([EVENT])
    heard = [await pubsub.get_message(timeout=60) for _ in range(2)]
    assert [each["data"] for each in heard if each] == [b'{"run_id":"r1","signal":"STOP"}', EVENT.encode()]
    await direct.release(pubsub)


async def test_a_lost_reply_doubles_no_push(
    rest: RedisClients, direct: RedisClients, proxy: RestProxy
) -> None:
    """The library would post it again; here the caller does, and the mark makes it one entry."""
    queue = Queue(rest)
    await queue.push(Job("warm"), 0)
    await direct.commands.delete("jobs:pending")
    sent = len(proxy.commands)
    proxy.lose_replies = 1
    with pytest.raises(RedisDown):
        await queue.push(Job("r1"), 0)
    assert len(proxy.commands) == sent + 1, "sent once"
    assert await direct.commands.llen("jobs:pending") == 1
    assert not await queue.push(Job("r1"), 0)
    assert await direct.commands.llen("jobs:pending") == 1


async def test_silence_is_an_error_after_three_seconds(rest: RedisClients, proxy: RestProxy) -> None:
    """The library would wait for ever."""
    proxy.silent.set()
    async with asyncio.timeout(60):
        with pytest.raises(RedisDown, match="did not answer within 3 s"):
            await Queue(rest).depth()
    proxy.silent.clear()
    await Queue(rest).depth()


async def test_nothing_is_told_about_who_asks(rest: RedisClients, proxy: RestProxy) -> None:
    """No telemetry; replies in base64."""
    await Queue(rest).depth()
    names = {name.lower() for headers in proxy.headers for name in headers}
    assert {name for name in names if "telemetry" in name} == set()
    assert {headers["Upstash-Encoding"] for headers in proxy.headers} == {"base64"}


@pytest.mark.parametrize("trouble", ["token", "address", "reply"])
async def test_what_is_wrong_is_said(trouble: str, proxy: RestProxy, redis_server: RedisServer) -> None:
    """A wrong token, nobody there, and a connection that ends; one command or many."""
    if trouble == "address":
        proxy.url = "http://127.0.0.1:1"
    clients = RedisClients.for_api(settings(proxy, token="wrong" if trouble == "token" else TOKEN).redis)
    says = {"token": "Unauthorized", "address": "REST API failed", "reply": "REST API failed"}[trouble]
    if trouble == "reply":
        proxy.lose_replies = 1
    with pytest.raises(RedisDown, match=says):
        await clients.ping()
    proxy.lose_replies = 1
    with pytest.raises(RedisDown):
        await Queue(clients).depth()
    await clients.close()


async def test_both_ways_must_lead_to_one_server(
    tmp_path: Path, proxy: RestProxy, redis_server: RedisServer
) -> None:
    """Otherwise pushes would go where no worker looks; and it is well once they do."""
    other = RedisServer(tmp_path).start()
    apart = RedisClients.for_api(settings(proxy, other.url).redis)
    with pytest.raises(RedisDown, match="two different servers"):
        await apart.ping()
    with pytest.raises(RedisDown, match="two different servers"):
        await apart.ping()
    await apart.close()
    other.stop()
    together = RedisClients.for_api(settings(proxy, redis_server.url).redis)
    await together.ping()
    nonces = len({command[1] for command in proxy.commands if command[0].upper() == "SET"})
    await together.ping()
    again = {command[1] for command in proxy.commands if command[0].upper() == "SET"}
    assert len(again) == nonces, "shown once"
    await together.close()


@pytest.mark.parametrize("only_rest", [False, True], ids=["with pub/sub", "REST alone"])
def test_the_whole_system_with_an_api_on_rest(only_rest: bool, tmp_path: Path, sqlite_url: str) -> None:
    """Run, tail to the end, cancel, look at the queue; a lost reply in mid-submit makes one run."""
    server = RedisServer(tmp_path / "redis").start()
    with rest_proxy(server) as proxy:
        api = proxy.settings | ({"REDIS_URL": ""} if only_rest else {})
        stack = Stack(tmp_path, sqlite_url, redis=server, api_settings=api)
        try:
            _exercise(stack, proxy)
        finally:
            stack.close()


def _exercise(stack: Stack, proxy: RestProxy) -> None:
    run_id = stack.submit(shell('for i in $(seq 1 30); do echo "line $i"; sleep 0.05; done'))
    watcher = stack.watch(run_id)
    assert watcher.finish()[-1]["status"] == "succeeded"
    assert watcher.lines() == [f"line {i}" for i in range(1, 31)]
    assert seqs(watcher.events) == list(range(1, stack.run(run_id)["last_seq"] + 1))
    slow = stack.submit(shell("echo begun; sleep 60"))
    watcher = stack.watch(slow)
    watcher.wait_line("begun")
    stack.cancel(slow)
    assert watcher.finish()[-1]["status"] == "cancelled"
    proxy.lose_replies = 1
    lost = stack.submit(shell("echo once"))
    assert stack.wait_end(lost)["status"] == "succeeded"
    assert [e["content"] for e in stack.events(lost) if e["type"] == "log"] == ["once"]
    wait_for(lambda: stack.http.get("/v1/queue").json()["in_flight"] == 0, "the acks")
    assert {"EVALSHA", "PUBLISH"} <= proxy.names
    assert {"BLMOVE", "SUBSCRIBE"} & proxy.names == set()


def test_an_api_whose_two_ways_lead_apart_is_not_ready(tmp_path: Path, sqlite_url: str) -> None:
    """It says why on /readyz; nothing would run."""
    server, other = RedisServer(tmp_path / "redis").start(), RedisServer(tmp_path / "other").start()
    with rest_proxy(other) as proxy:
        chosen = changed(
            settings(proxy, server.url), data_dir=tmp_path, database_url=sqlite_url, api_token="t"
        )
        with serving(chosen) as api:
            answer = api.client("t").get("/readyz")
            assert answer.status_code == 503
            assert "two different servers" in answer.json()["checks"]["redis"]
    server.stop()
    other.stop()
