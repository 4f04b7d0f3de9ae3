"""Redis restarts, or the database is away, in the middle of a reply: it is paid for once, and whole."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.agents import Agents, says
from support.scripted_model import Answer, Until, chat_reply
from support.servers import RedisServer
from support.tcp_proxy import TcpProxy

from app.core.agent_records import CallStatus
from app.db.migrate import migrate


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.stop()


async def in_the_middle(agents: Agents, go_on: threading.Event) -> str:
    """Start a run whose first reply stops after its first words."""
    whole = chat_reply("one two three", [("c1", "file_write", '{"path": "a", "content": "x"}')])
    agents.model.script(Answer(whole[:300], Until(go_on), whole[300:]), says("done"))
    agents.start_worker()
    run_id = await agents.submit("Go.")
    await agents.until(lambda: agents.model.asked and agents.model.asked[0].sent, "the first words")
    return run_id


async def held_as_one(agents: Agents, run_id: str) -> None:
    run = await agents.ended(run_id)
    assert run.result == {"text": "done"}
    assert len(agents.model.asked) == 2
    assert [call.status for call in await agents.calls_of(run_id)] == [CallStatus.ANSWERED] * 2
    events = await agents.events(run_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    words = "".join(event.content or "" for event in events if event.stream == "model")
    assert words == "one two threedone"


async def test_redis_restarts_in_the_middle_of_a_reply(
    tmp_path: Path, own_redis: RedisServer, migrated_url: str
) -> None:
    agents = Agents(tmp_path, own_redis.url, migrated_url)
    go_on = threading.Event()
    try:
        run_id = await in_the_middle(agents, go_on)
        own_redis.kill()
        go_on.set()
        assert await asyncio.to_thread(agents.model.asked[0].ended.wait, 60)
        await asyncio.to_thread(own_redis.start)
        await held_as_one(agents, run_id)
    finally:
        go_on.set()
        await agents.close()


async def test_the_database_is_away_when_a_reply_ends(
    tmp_path: Path, redis_server: RedisServer, postgres_url: str
) -> None:
    """The reply is kept in the worker until the database takes it."""
    migrate(postgres_url)
    head, _, tail = postgres_url.rpartition("@")
    host, _, name = tail.partition("/")
    proxy = TcpProxy(int(host.rpartition(":")[2]))
    agents = Agents(tmp_path, redis_server.url, postgres_url)
    agents.settings["DATABASE_URL"] = f"{head}@127.0.0.1:{proxy.port}/{name}"
    go_on = threading.Event()
    try:
        run_id = await in_the_middle(agents, go_on)
        real, proxy.target = proxy.target, 1
        proxy.cut()
        go_on.set()
        log = tmp_path / "worker0.log"
        await agents.until(lambda: "store away" in log.read_text(), "the worker to notice")
        assert await asyncio.to_thread(agents.model.asked[0].ended.wait, 60)
        proxy.target = real
        await held_as_one(agents, run_id)
    finally:
        go_on.set()
        await agents.close()
        proxy.close()
