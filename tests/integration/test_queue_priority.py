"""The two ends of the queue: where an entry of high priority comes in, whichever way it takes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
import pytest
from support.run_rows import NOW, new_run
from support.servers import RedisServer

from app.core.models import Job, Priority
from app.db.engine import Database
from app.db.run_store import RunStore
from app.maintenance.reconciler import Reconciler
from app.redis.claims import Claims
from app.redis.clients import RedisClients
from app.redis.lease import Ticks
from app.redis.queue import Queue

LEASE_S = 5.0


@pytest.fixture
async def clients(redis_server: RedisServer) -> AsyncIterator[RedisClients]:
    clients = RedisClients(redis_server.url)
    yield clients
    await clients.close()


def job(name: str, priority: Priority = Priority.NORMAL) -> Job:
    return Job(name, "u", "steps", priority=priority)


async def claimed(clients: RedisClients) -> list[str]:
    """Return the run ids in the order in which a worker takes them, one by one."""
    claims, taken = Claims(clients, "w1", LEASE_S), list[str]()
    while entries := (await claims.claim(1)).entries:
        taken.append(orjson.loads(entries[0])["run_id"])
    return taken


async def test_high_is_taken_next(clients: RedisClients) -> None:
    """It enters at the right end; normal ones keep their order behind it."""
    queue = Queue(clients)
    for entry in (job("a"), job("b"), job("now", Priority.HIGH), job("c")):
        await queue.push(entry, 0)
    assert await claimed(clients) == ["now", "a", "b", "c"]


async def test_a_due_high_entry_is_taken_next(clients: RedisClients) -> None:
    """Of several the one that was due first; an entry that is no JSON is moved all the same."""
    queue, now = Queue(clients), await Queue(clients).time_us()
    await queue.push(job("waiting"), 0)
    await queue.push_delayed(job("later", Priority.HIGH), now - 1_000_000)
    await queue.push_delayed(job("first", Priority.HIGH), now - 2_000_000)
    await queue.push_delayed(job("normal"), now - 3_000_000)
    await clients.commands.zadd("jobs:delayed", {'{"priority":"high"': 1, '[1,"high"]': 2, "7": 3})
    assert (await Ticks(clients, LEASE_S).tick()).due == 6
    raw = await clients.commands.lrange("jobs:pending", 0, -1)
    assert raw[:4] == [job("normal").encode(), b"7", b'[1,"high"]', b'{"priority":"high"']
    names = [orjson.loads(entry)["run_id"] for entry in raw[4:]]
    assert names[::-1] == ["first", "later", "waiting"]


async def test_priority_in_a_name_is_no_priority(clients: RedisClients) -> None:
    """Only the field counts, not what a user writes into others."""
    queue, now = Queue(clients), await Queue(clients).time_us()
    await queue.push(job("a"), 0)
    forged = Job("b", '","priority":"high', "steps")
    await queue.push_delayed(forged, now - 10_000)
    await Ticks(clients, LEASE_S).tick()
    assert await claimed(clients) == ["a", "b"]


async def test_a_forgotten_high_run_is_pushed_to_its_end(clients: RedisClients, database: Database) -> None:
    """The reconciler reads the priority in the row, for due and for delayed runs."""
    runs, queue = RunStore(database), Queue(clients)
    due = NOW + 60_000_000
    await runs.create(new_run(run_id="high", priority=Priority.HIGH), NOW)
    await runs.create(new_run(run_id="later", priority=Priority.HIGH, run_at=due), NOW)
    await runs.create(new_run(run_id="normal"), NOW)
    assert await Reconciler(runs, queue, lambda: NOW + 10_000_000).reconcile() == 3
    [delayed] = await clients.commands.zrange("jobs:delayed", 0, -1, withscores=True)
    assert (orjson.loads(delayed[0])["priority"], delayed[1]) == ("high", due / 1000)
    assert await claimed(clients) == ["high", "normal"]
