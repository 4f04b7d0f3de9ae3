"""The reconciler finds what Redis has forgotten, however much waits, without holding all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support import seeded_runs
from support.run_rows import NOW, new_run, running
from support.seeded_runs import Seed, run_id
from support.servers import RedisServer

from app.core.models import Job
from app.db.engine import Database
from app.db.run_store import RunStore
from app.maintenance.reconciler import Reconciler, SeenRuns
from app.redis.clients import RedisClients
from app.redis.queue import Queue, run_id_of

LATER = NOW + 10_000_000
SEED = Seed(ended=100, queued=1_700, running=0)


@pytest.fixture
async def clients(redis_server: RedisServer) -> AsyncIterator[RedisClients]:
    clients = RedisClients(redis_server.url)
    yield clients
    await clients.close()


@pytest.fixture
def queue(clients: RedisClients) -> Queue:
    return Queue(clients)


async def test_what_is_missing_among_many_is_found(
    database: Database, queue: Queue, clients: RedisClients
) -> None:
    """Of 1 700 runs, on several pages each way, three have no entry; the others get no second one."""
    await seeded_runs.seed(database, SEED)
    ids = [run_id(number) for number in SEED.waiting()]
    lost = {ids[0], ids[850], ids[-1]}
    await queue.push_many([(Job(one), 0) for one in ids if one not in lost])
    assert await Reconciler(RunStore(database), queue, lambda: LATER).reconcile() == 3
    found = [run_id_of(raw) for raw in await clients.commands.lrange("jobs:pending", 0, -1)]
    assert sorted(filter(None, found)) == ids


async def test_an_empty_redis_is_filled_again(
    database: Database, queue: Queue, clients: RedisClients
) -> None:
    """At once, also when the last scan has just been: an entry count that collapses ends its rest."""
    await seeded_runs.seed(database, SEED)
    reconciler = Reconciler(RunStore(database), queue, lambda: LATER)
    assert await reconciler.reconcile() == SEED.queued
    assert await reconciler.reconcile() == 0
    await clients.commands.flushall()
    assert await reconciler.reconcile() == SEED.queued


async def test_it_rests_after_what_it_costs(
    database: Database, queue: Queue, clients: RedisClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run or two too few in Redis, as between a commit and its push, make no scan after scan."""
    await seeded_runs.seed(database, SEED)
    reconciler, scans = Reconciler(RunStore(database), queue, lambda: LATER), 0

    async def scan(_entries: int) -> int:
        nonlocal scans
        scans += 1
        return 0

    monkeypatch.setattr("app.maintenance.reconciler._REST", 1e9)
    monkeypatch.setattr(reconciler, "_scan", scan)
    for _ in range(3):
        await reconciler.reconcile()
    assert scans == 1


async def test_who_runs_with_a_living_worker_is_left_alone(
    database: Database, queue: Queue, clients: RedisClients
) -> None:
    store = RunStore(database)
    await running(store, "w-alive")
    lost, _ = await running(store, "w-dead")
    seconds, _ = await clients.commands.time()
    await clients.commands.zadd("jobs:workers", {"w-alive": (seconds + 60) * 1000})
    assert await Reconciler(store, queue, lambda: LATER).reconcile() == 1
    [entry] = await clients.commands.lrange("jobs:pending", 0, -1)
    assert run_id_of(entry) == lost.run_id


async def test_a_run_that_is_due_later_waits_again(
    database: Database, queue: Queue, clients: RedisClients
) -> None:
    await RunStore(database).create(new_run(run_at=LATER + 60_000_000), NOW)
    assert await Reconciler(RunStore(database), queue, lambda: LATER).reconcile() == 1
    assert await clients.commands.zcard("jobs:delayed") == 1
    assert await clients.commands.llen("jobs:pending") == 0


async def test_no_list_is_read_whole(
    database: Database, queue: Queue, redis_server: RedisServer, clients: RedisClients
) -> None:
    """Redis answers one command at a time: a million entries at once would stop everybody."""
    await seeded_runs.seed(database, SEED)
    await queue.push_many([(Job(run_id(number)), 0) for number in SEED.waiting()])
    with redis_server.client() as client:
        client.config_set("slowlog-max-len", 10_000)
        client.config_set("slowlog-log-slower-than", 0)
        client.slowlog_reset()
        await Reconciler(RunStore(database), queue, lambda: LATER).reconcile()
        client.config_set("slowlog-log-slower-than", 10_000)
        asked = [entry["command"].split() for entry in client.slowlog_get(10_000)]
    ranges = [words for words in asked if words[0] in {b"LRANGE", b"ZREVRANGE", b"ZRANGE"}]
    assert {words[1] for words in ranges} >= {b"jobs:pending", b"jobs:delayed"}
    whole = [words for words in ranges if int(words[3]) == -1 and words[1] != b"jobs:workers"]
    assert not whole
    assert max(int(words[3]) - int(words[2]) for words in ranges) < 1_000


def test_seen_runs_forget_none_and_mistake_few() -> None:
    """Of 20 000 runs that were not seen, not one in a hundred is taken for seen, and by chance each time."""
    seen, unseen = [f"run-{n}" for n in range(20_000)], [f"other-{n}" for n in range(20_000)]
    filters = [SeenRuns(len(seen)) for _ in range(2)]
    for one in filters:
        for name in seen:
            one.add(name)
        assert all(name in one for name in seen)
        assert sum(name in one for name in unseen) < 200
    assert not [name for name in unseen if all(name in one for one in filters)]
