"""Does everything in Redis that Tailrun ever does there, so that a test can look at what the server saw."""

from __future__ import annotations

import asyncio
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from threading import Thread
from typing import Any

import app.redis
from app.core.events import Event, EventType
from app.core.models import Job
from app.redis.claims import Claims
from app.redis.clients import RedisClients
from app.redis.keys import Script
from app.redis.lease import LeaseClient, Ticks
from app.redis.publisher import Publisher, Tail
from app.redis.queue import DeadLetters, Queue
from app.redis.subscriber import Signals, Subscriptions
from support.servers import RedisServer

EVENT = Event(seq=1, type=EventType.LOG, ts=1, run_id="r1", attempt=1, data={"content": "hello"})


def all_scripts() -> dict[str, Script]:
    """Return every script of app.redis by where it stands."""
    found: dict[str, Script] = {}
    for module in pkgutil.iter_modules(app.redis.__path__):
        for name, value in vars(import_module(f"app.redis.{module.name}")).items():
            if isinstance(value, Script):
                found[f"{module.name}.{name}"] = value
    return found


async def drive(clients: RedisClients, lease: LeaseClient) -> None:
    """Call everything once; the caller owns the clients."""
    subscriptions, stand = Subscriptions(clients), asyncio.Event()
    subscriptions.add(clients.keys.logs("r1"), lambda _message: None, stand.set)
    async with asyncio.timeout(60):
        await stand.wait()
        signals = Signals(clients).listen()
        assert await anext(signals) is None
        await _drive_queue(clients, lease)
        await _drive_stream(clients)
        await signals.aclose()  # pyright: ignore[reportAttributeAccessIssue] - it is a generator
        await subscriptions.close()


async def _drive_queue(clients: RedisClients, lease: LeaseClient) -> None:
    queue, claims, ticks = Queue(clients), Claims(clients, "w1", 5), Ticks(clients, 5)
    letters = DeadLetters(clients)
    await clients.ping()
    for n, priority in enumerate(("normal", "high", "normal", "normal", "normal")):
        await queue.push(Job(f"r{n}", priority=priority), 0)
    assert await queue.push_many([(Job("r0"), 0), (Job("r4", priority="high"), 0)]) == 0, "marked"
    await queue.push_delayed(Job("late", priority="high"), 1)
    await queue.push_delayed(Job("later"), 2)
    taken = [await claims.wait(), *(await claims.claim(4)).entries]
    first, second, third, fourth, fifth = [entry for entry in taken if entry is not None]
    assert len(await lease.renew()) == 5
    await claims.requeue(first)
    await claims.delay(second, second, 1)
    await claims.dead_letter(third, "malformed", 1)
    await claims.claim(0, [fourth])
    await claims.reregister(fourth)
    await claims.reregister(fifth)
    await queue.depth()
    await queue.worker_alive("w1")
    await queue.worker_gone("w1")
    assert [page async for page in queue.known_runs()]
    await queue.time_us()
    assert (await ticks.tick()).due == 3
    await ticks.lead("reconciler", "w1", 5)
    assert await lease.release() == 2
    await ticks.reap("w1")
    await letters.remove(await letters.named("r2"))
    await letters.remove(await letters.page(0, 10))


async def _drive_stream(clients: RedisClients) -> None:
    publisher, tail = Publisher(clients), Tail(clients)
    await publisher.raise_fence("r1", 1)
    for seq in (1, 2):
        await publisher.append("r1", 1, seq, [EVENT.encode()], keep_from=seq, may_raise=True)
    assert await tail.top("r1") == 2
    assert len(await tail.read("r1", 0, 10)) >= 1
    await publisher.announce([EVENT])
    await publisher.announce([replace(EVENT, type=EventType.END)])
    await publisher.signal("r1", "STOP")
    await publisher.append("r1", 1, 3, [EVENT.encode()], keep_from=0, ended=True)


_LINE = re.compile(r'^[\d.]+ \[\d+ [^\]]+\] (?P<words>".*")$')
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Monitor(Thread):
    """Reads the server's MONITOR: `commands` are the words of each, also of those inside scripts."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__(daemon=True)
        self.commands: list[list[str]] = []
        self._client = server.client()
        self._connection: Any = self._client.connection_pool.get_connection()
        self._connection.send_command("MONITOR")
        assert self._connection.read_response() == "OK"
        self.start()

    def run(self) -> None:
        while True:
            line = self._connection.read_response()
            found = _LINE.match(line)
            assert found, line
            words = [re.sub(r"\\(.)", r"\1", word) for word in _WORD.findall(found["words"])]
            if words == ["ECHO", "that is all"]:
                return
            self.commands.append(words)

    def close(self) -> None:
        self._connection.disconnect()
        self._client.close()


@contextmanager
def monitored(server: RedisServer) -> Iterator[Monitor]:
    """Look at what a server is told in this block; `commands` is whole at its end."""
    monitor = Monitor(server)
    try:
        yield monitor
        with server.client() as client:
            client.execute_command("ECHO", "that is all")
        monitor.join(60)
        assert not monitor.is_alive()
    finally:
        monitor.close()
