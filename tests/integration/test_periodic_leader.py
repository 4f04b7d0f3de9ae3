"""One leader for each periodic work, by a real Redis: never two, and soon another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.servers import RedisServer
from support.stream_fixtures import until

from app.core.periodic import Lead, Periodic, going_on
from app.redis.clients import RedisClients
from app.redis.lease import Ticks

NAMES = ("a", "b", "c")


@pytest.fixture
async def clients(redis_server: RedisServer) -> AsyncIterator[RedisClients]:
    clients = RedisClients(redis_server.url)
    yield clients
    await clients.close()


class Team:
    """Three processes, as it were, with one periodic work. A round takes longer than a leadership lasts."""

    def __init__(self, clients: RedisClients) -> None:
        self._ticks = Ticks(clients, 5)
        self.at_work: set[str] = set()
        self.did: list[str] = []
        self.most_at_once = 0
        self.works = {name: Periodic("r", 0.05, self._round(name), lead=self._lead(name)) for name in NAMES}

    def _lead(self, name: str) -> Lead:
        async def lead(role: str, ttl_s: float) -> bool:
            return await self._ticks.lead(role, name, ttl_s)

        return lead

    def _round(self, name: str):  # noqa: ANN202 - a coroutine function
        async def work() -> None:
            self.at_work.add(name)
            self.most_at_once = max(self.most_at_once, len(self.at_work))
            try:
                await asyncio.sleep(1.5)
                self.did.append(name)
            finally:
                self.at_work.discard(name)

        return work


@pytest.fixture
def team(clients: RedisClients, monkeypatch: pytest.MonkeyPatch) -> Team:
    monkeypatch.setattr("app.core.periodic._LEAD_LEAST_S", 1.0)
    return Team(clients)


async def test_one_leads_and_when_it_is_gone_another_one(team: Team) -> None:
    async with going_on(team.works.values()):
        await until(lambda: len(team.did) >= 2)
        [leader] = set(team.did)
        await team.works[leader].stop()
        await until(lambda: len(set(team.did)) == 2)
        assert team.did.count(leader) <= len(team.did) - 1
    assert team.most_at_once == 1


async def test_a_work_that_only_breaks_keeps_its_leader_and_goes_on(
    clients: RedisClients, team: Team
) -> None:
    """Its error is not the end of the task that renews the leadership."""
    tried = 0

    async def work() -> None:
        nonlocal tried
        tried += 1
        raise KeyError(tried)

    async with going_on([Periodic("broken", 0.05, work, lead=team._lead("a"), again_most_s=0.05)]):
        await until(lambda: tried >= 10)
        assert await clients.commands.get("jobs:leader:broken") == b"a"
