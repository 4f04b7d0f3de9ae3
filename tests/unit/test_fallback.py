"""When an API has a worker of its own, rule by rule: `test_worker_fallback` does it with processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from app.config import Settings
from app.core.errors import StorageError
from app.core.parent_death import RETIRE
from app.runs import fallback
from app.runs.fallback import Fallback, OwnWorker


class Process:
    """A child that only remembers what it was told."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self.signals: list[int] = []

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    async def wait(self) -> int:
        self.returncode = 0
        return 0


@dataclass
class Cluster:
    """Leases, the leader and the clock that several APIs share."""

    now: float = 1000.0
    alive: set[str] = field(default_factory=set[str])
    leader: str = ""
    away: bool = False
    started: list[OwnWorker] = field(default_factory=list[OwnWorker])

    async def live(self) -> set[str]:
        if self.away:
            raise StorageError("Redis is away")
        return set(self.alive)

    async def lead(self, _role: str, who: str, _ttl_s: float) -> bool:
        self.leader = self.leader or who
        return self.leader == who

    async def start(self, name: str, _environ: Mapping[str, str]) -> OwnWorker:
        theirs, ours = os.pipe()
        os.close(theirs)
        self.alive.add(f"{name}-1-abc")
        self.started.append(OwnWorker(name, cast("Any", Process()), ours))
        return self.started[-1]

    def api(self) -> Fallback:
        return Fallback(Settings(worker_fallback_s=10), self.live, self.lead, environ={})

    async def pass_by(self, seconds: float, *apis: Fallback) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            for api in apis:
                await api.look()

    def told(self, worker: OwnWorker) -> list[int]:
        return cast("Any", worker.process).signals

    def end(self, worker: OwnWorker) -> None:
        cast("Any", worker.process).returncode = 0
        self.alive = {name for name in self.alive if not name.startswith(worker.name)}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(fallback.time, "monotonic", lambda: cluster.now)
    monkeypatch.setattr(OwnWorker, "start", cluster.start)
    return cluster


async def test_it_starts_one_when_none_was_alive_for_so_long(cluster: Cluster) -> None:
    api = cluster.api()
    cluster.alive = {"w-1-a"}
    await cluster.pass_by(60, api)
    cluster.alive = set()
    await cluster.pass_by(10, api)
    assert cluster.started == []
    await cluster.pass_by(30, api)
    assert len(cluster.started) == 1
    await api.close()
    assert cluster.told(cluster.started[0]) == [signal.SIGTERM]


async def test_who_cannot_see_does_not_count(cluster: Cluster) -> None:
    """A Redis that was away begins the time anew."""
    api = cluster.api()
    await cluster.pass_by(9, api)
    cluster.away = True
    with pytest.raises(StorageError):
        await cluster.pass_by(5, api)
    cluster.away = False
    await cluster.pass_by(9, api)
    assert cluster.started == []


async def test_one_of_two_starts_it(cluster: Cluster) -> None:
    apis = [cluster.api(), cluster.api()]
    await cluster.pass_by(60, *apis)
    assert len(cluster.started) == 1
    assert cluster.told(cluster.started[0]) == []


async def test_it_retires_when_others_are_alive_and_is_no_other_to_itself(cluster: Cluster) -> None:
    api = cluster.api()
    await cluster.pass_by(20, api)
    [first] = cluster.started
    cluster.alive.add("w-1-a")
    await cluster.pass_by(3, api)
    assert cluster.told(first) == [RETIRE]
    cluster.alive.discard("w-1-a")  # and the first one is still busy
    await cluster.pass_by(20, api)
    assert len(cluster.started) == 2
    cluster.end(first)
    await cluster.pass_by(1, api)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(first.pipe)
    await api.close()


async def test_one_that_dies_is_replaced(cluster: Cluster) -> None:
    """Its command too may be killed."""
    api = cluster.api()
    await cluster.pass_by(20, api)
    cluster.end(cluster.started[0])
    await cluster.pass_by(20, api)
    assert len(cluster.started) == 2
    await api.close()


async def test_of_two_the_one_without_the_lead_goes(cluster: Cluster) -> None:
    """Its API was frozen, and another one led meanwhile."""
    frozen, other = cluster.api(), cluster.api()
    await cluster.pass_by(20, frozen)
    [first] = cluster.started
    hidden, cluster.alive, cluster.leader = cluster.alive, set(), ""
    await cluster.pass_by(20, other)
    second = cluster.started[1]
    cluster.alive |= hidden
    frozen._leadership._renewed_at = float("-inf")
    await cluster.pass_by(3, frozen, other)
    assert (cluster.told(first), cluster.told(second)) == ([RETIRE], [])
