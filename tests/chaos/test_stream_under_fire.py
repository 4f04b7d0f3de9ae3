"""Every kind of watcher, while Redis and the API die and messages are lost: each gets 1..n, then the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx2
import psutil
import pytest
from support.servers import RedisServer
from support.stack import Process, Stack, shell, wait_for
from support.tcp_proxy import BehindProxy, TcpProxy
from support.watchers import BEARER, CLIENTS, Watch, by_text, follow

LINES = 100
LOST = 0.05
"""The share of pub/sub messages that the proxy drops."""


class Exposed(Stack):
    """A stack whose watchers come through a proxy."""

    front: TcpProxy


@pytest.fixture
def stack(tmp_path: Path, database_url: str) -> Iterator[Exposed]:
    redis = BehindProxy(RedisServer(tmp_path / "redis").start(), seed=1)
    stack = Exposed(tmp_path, database_url, redis=redis, WORKER_CONCURRENCY="20")
    stack.front = TcpProxy(stack.port, seed=2)
    yield stack
    stack.front.close()
    stack.close()


@dataclass(frozen=True)
class Size:
    """What a process has: connections to Redis, other descriptors, resident memory."""

    to_redis: int
    others: int
    memory_mb: int

    @classmethod
    def of(cls, stack: Stack, process: Process) -> Size:
        found = psutil.Process(process.popen.pid)
        port = stack.redis.proxy.port
        to_redis = sum(bool(each.raddr) and each.raddr[1] == port for each in found.net_connections("tcp"))
        return cls(to_redis, found.num_fds() - to_redis, found.memory_info().rss >> 20)

    def grew_no_more_than_pools(self, before: Size) -> bool:
        """Pools fill up as they are used: Redis' to 64, a database's to 6 connections of 3 files."""
        return self.to_redis <= 70 and self.others <= before.others + 24


async def watched(stack: Exposed, run_ids: list[str], clients: int, rounds: int) -> list[Watch]:
    """Let a crowd follow the runs; meanwhile break something, round after round."""
    url = f"http://127.0.0.1:{stack.front.port}"
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(
        base_url=url, headers=BEARER, timeout=60, trust_env=False, limits=limits
    ) as http:
        watches = [Watch(url, http, run_ids[n % len(run_ids)]) for n in range(clients)]
        tasks = [
            asyncio.create_task(follow(watch, CLIENTS[n % len(CLIENTS)])) for n, watch in enumerate(watches)
        ]
        for n in range(rounds):
            await progress(watches, n + 1, rounds + 1)
            await asyncio.to_thread(break_something, stack, n)
        return await asyncio.gather(*tasks)


async def progress(watches: list[Watch], part: int, of: int) -> None:
    """Wait until the crowd has seen about this part of its runs; text has no numbers to count."""
    numbered = [watch for n, watch in enumerate(watches) if CLIENTS[n % len(CLIENTS)] is not by_text]
    while sum(watch.last for watch in numbered) < len(numbered) * LINES * part / of:
        await asyncio.sleep(0.05)


def break_something(stack: Exposed, n: int) -> None:
    """One after the other; the last cuts watchers off at any byte of what they get."""
    if n % 4 == 0:
        stack.api.kill()
        stack.api.start()
    elif n % 4 == 1:
        stack.redis.kill()
        stack.redis.start()
    elif n % 4 == 2:
        stack.redis.proxy.cut(0.5)
    else:
        for _ in range(50):
            stack.front.lose(reply=b'"seq":', keep=stack.front.dice.randrange(200))


def under_fire(stack: Exposed, *, runs: int, clients: int, rounds: int, pause_s: float) -> None:
    stack.wait_end(stack.submit(shell("seq 10")))
    processes = (stack.api, stack.workers[0])
    before = [Size.of(stack, process) for process in processes]
    command = f'for i in $(seq 1 {LINES}); do echo "line $i"; sleep {pause_s}; done'
    stack.redis.proxy.drop_messages = LOST
    run_ids = [stack.submit(shell(command)) for _ in range(runs)]
    watches = anyio.run(watched, stack, run_ids, clients, rounds)
    stack.wait_ready()
    expected = {run_id: stack.events(run_id) for run_id in run_ids}
    lines = [f"line {i}" for i in range(1, LINES + 1)]
    for n, watch in enumerate(watches):
        events, kind = expected[watch.run_id], CLIENTS[n % len(CLIENTS)]
        assert [event["content"] for event in events if event.get("stream") == "stdout"] == lines
        if kind is by_text:
            assert [line for line in watch.lines if line in {*lines, "DONE"}] == [*lines, "DONE"]
            assert watch.lines == [*(e["content"] for e in events if e["type"] == "log"), "DONE"]
        else:
            assert [(e["seq"], e["type"]) for e in watch.events] == [(e["seq"], e["type"]) for e in events]
        assert watch.connections >= 1
    assert stack.redis.proxy.dropped > 0
    for process, old in zip(processes, before, strict=True):
        wait_for(
            lambda p=process, o=old: Size.of(stack, p).grew_no_more_than_pools(o), "descriptors as before"
        )
        assert Size.of(stack, process).memory_mb <= old.memory_mb + 60
    print(
        f"{runs} runs, {clients} clients, {sum(w.connections for w in watches)} connections, "
        f"{sum(loss.happened for loss in stack.front.losses)} cut at a byte, "
        f"{stack.redis.proxy.dropped} messages dropped; API and worker were {before}, "
        f"are {[Size.of(stack, process) for process in processes]}"
    )


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_small_crowd(stack: Exposed) -> None:
    under_fire(stack, runs=5, clients=14, rounds=4, pause_s=0.05)


@pytest.mark.deep
@pytest.mark.timeout(600)
def test_fifty_clients(stack: Exposed) -> None:
    under_fire(stack, runs=20, clients=50, rounds=12, pause_s=0.4)
