"""The queue in a real Redis: what each script does to the keys, and that repeating it is safe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest
from support.servers import RedisServer

from app.core.models import Job, Priority
from app.redis.claims import Claims
from app.redis.clients import RedisClients, RedisDown
from app.redis.lease import LeaseClient, Ticks
from app.redis.queue import DeadLetters, Queue

LEASE_S = 5.0


@pytest.fixture
async def clients(redis_server: RedisServer) -> AsyncIterator[RedisClients]:
    clients = RedisClients(redis_server.url)
    yield clients
    await clients.close()


def job(n: int) -> Job:
    return Job(f"run-{n}", "u", "steps", enqueued_at="2026-11-20T12:00:00.000000Z")


async def keys(clients: RedisClients) -> set[str]:
    return {key.decode() for key in await clients.commands.keys()}


async def test_first_pushed_is_first_claimed(clients: RedisClients) -> None:
    """LPUSH at the left, taken from the right."""
    queue, claims = Queue(clients), Claims(clients, "w1", LEASE_S)
    for n in range(5):
        await queue.push(job(n), 0)
    claim = await claims.claim(3)
    assert [orjson.loads(entry)["run_id"] for entry in claim.entries] == ["run-0", "run-1", "run-2"]
    assert (await queue.depth()).pending == 2
    assert (await queue.depth()).processing == {"w1": 3}


async def test_a_push_is_made_once(clients: RedisClients) -> None:
    """The same push repeated after a lost reply is one entry; a later push is another."""
    queue = Queue(clients)
    assert [await queue.push(job(1), 0), await queue.push(job(1), 0), await queue.push(job(1), 1)] == [
        True,
        False,
        True,
    ]
    assert (await queue.depth()).pending == 2


async def test_many_pushes_are_each_made_once_and_in_order(clients: RedisClients) -> None:
    """Over several calls; what is pushed again is left out, what goes first comes first."""
    queue, claims = Queue(clients), Claims(clients, "w1", LEASE_S)
    await queue.push(job(7), 0)
    pushes = [(job(n), 0) for n in range(1_200)]
    urgent = [(replace(job(n), priority=Priority.HIGH), 0) for n in (5_000, 5_001)]
    assert await queue.push_many([*pushes, *urgent]) == 1_201
    assert await queue.push_many([*pushes, *urgent]) == 0
    assert await queue.push_many([]) == 0
    taken = [orjson.loads(entry)["run_id"] for entry in (await claims.claim(2_000)).entries]
    others = [n for n in range(1_200) if n != 7]
    assert taken == [f"run-{n}" for n in (5_001, 5_000, 7, *others)]


async def test_redis_time_is_counted_on_from_what_redis_said_last(clients: RedisClients) -> None:
    """For an entry that wakes a worker; never late: what has just become due must not seem early."""
    queue, claims = Queue(clients), Claims(clients, "w1", LEASE_S)
    await claims.claim(1)
    for _ in range(20):
        waiting = asyncio.create_task(claims.wait())
        pushed_at = await queue.time_us()
        await clients.commands.lpush("jobs:pending", job(1).encode())
        await waiting
        now = claims.now_us()
        assert pushed_at <= now
        assert now - await queue.time_us() < 1_000_000


async def test_claim_acks_what_is_finished(clients: RedisClients) -> None:
    queue, claims = Queue(clients), Claims(clients, "w1", LEASE_S)
    await queue.push(job(1), 0)
    first = await claims.claim(1)
    await queue.push(job(2), 0)
    second = await claims.claim(1, first.entries)
    assert await clients.commands.lrange("jobs:processing:w1", 0, -1) == second.entries


async def test_claiming_nothing_takes_nothing(clients: RedisClients) -> None:
    queue, claims = Queue(clients), Claims(clients, "w1", LEASE_S)
    await queue.push(job(1), 0)
    assert (await claims.claim(0)).entries == []
    assert (await queue.depth()).pending == 1


async def test_wait_wakes_for_an_entry_and_holds_it(clients: RedisClients) -> None:
    queue, claims = Queue(clients), Claims(clients, "w1", LEASE_S)
    waiting = asyncio.create_task(claims.wait())
    await asyncio.sleep(0)
    await queue.push(job(1), 0)
    assert await waiting == job(1).encode()
    assert (await queue.depth()).in_flight == 0  # not a known worker before its first renewal
    assert await clients.commands.llen("jobs:processing:w1") == 1


async def test_letting_go_acts_only_while_held(clients: RedisClients) -> None:
    """A repeated give back, delay or bury after a lost reply changes nothing."""
    queue, claims = Queue(clients), Claims(clients, "w1", LEASE_S)
    for n in range(3):
        await queue.push(job(n), 0)
    a, b, c = (await claims.claim(3)).entries
    assert [await claims.requeue(a), await claims.requeue(a)] == [True, False]
    assert [await claims.delay(b, b, 1), await claims.delay(b, b, 1)] == [True, False]
    assert [await claims.dead_letter(c, "poison", 0), await claims.dead_letter(c, "poison", 0)] == [
        True,
        False,
    ]
    depth = await queue.depth()
    assert (depth.pending, depth.delayed, depth.dead) == (1, 1, 1)


async def test_what_is_given_back_runs_next(clients: RedisClients) -> None:
    queue, claims = Queue(clients), Claims(clients, "w1", LEASE_S)
    for n in range(3):
        await queue.push(job(n), 0)
    [first] = (await claims.claim(1)).entries
    await claims.requeue(first)
    assert (await claims.claim(1)).entries == [first]


async def test_a_dead_letter_says_why_and_keeps_the_raw_text(clients: RedisClients) -> None:
    claims = Claims(clients, "w1", LEASE_S)
    await clients.commands.lpush("jobs:pending", b"\xff not json")
    [garbage] = (await claims.claim(1)).entries
    await claims.dead_letter(garbage, "malformed", 0)
    letter = (await DeadLetters(clients).page(0, 10))[0].body
    assert (letter["reason"], letter["raw"], letter["run_id"]) == ("malformed", "� not json", None)


async def test_dead_letters_of_a_run_can_be_dropped(clients: RedisClients) -> None:
    queue, claims = Queue(clients), Claims(clients, "w1", LEASE_S)
    for n in (1, 2, 1):
        await queue.push(job(n), n)
        await queue.push(job(n), n + 10)
    for entry in (await claims.claim(10)).entries:
        await claims.dead_letter(entry, "poison", 0)
    dead = DeadLetters(clients)
    assert await dead.remove(await dead.named("run-1")) == 2
    assert {letter.run_id for letter in await dead.page(0, 10)} == {"run-2"}


async def test_a_dead_lease_is_reaped_in_order(clients: RedisClients) -> None:
    """What a dead worker held runs next, the oldest first; a live worker keeps its own."""
    queue, ticks = Queue(clients), Ticks(clients, LEASE_S)
    for n in range(4):
        await queue.push(job(n), 0)
    dead = (await Claims(clients, "dead", LEASE_S).claim(2)).entries
    live = (await Claims(clients, "live", LEASE_S).claim(1)).entries
    await ticks.tick()
    await clients.commands.zadd("jobs:workers", {"dead": 1})
    await clients.commands.set("jobs:tick", await _tick_at(queue, hold_ms=-1))
    tick = await ticks.tick()
    assert tick.reaped == {"dead": 2}
    again = (await Claims(clients, "w2", LEASE_S).claim(3)).entries
    assert again == [*dead, job(3).encode()]
    assert await clients.commands.lrange("jobs:processing:live", 0, -1) == live


@pytest.mark.parametrize("age_ms", [3_500, 60_000, -60_000, None])
async def test_nobody_is_reaped_after_redis_was_away(clients: RedisClients, age_ms: int | None) -> None:
    """A tick that is late, in the future or missing gives every worker a whole lease to renew."""
    queue, ticks = Queue(clients), Ticks(clients, LEASE_S)
    await queue.push(job(1), 0)
    await Claims(clients, "w1", LEASE_S).claim(1)
    await clients.commands.zadd("jobs:workers", {"w1": 1})
    if age_ms is not None:
        await clients.commands.set("jobs:tick", await _tick_at(queue, age_ms=age_ms, hold_ms=-1))
    assert (await ticks.tick()).reaped == {}
    assert (await ticks.tick()).reaped == {}, "the hold lasts"
    hold_ms = int((await clients.commands.get("jobs:tick")).split()[1])
    assert 4_000 < hold_ms - await queue.time_us() / 1000 <= 5_000


async def test_due_entries_become_pending(clients: RedisClients) -> None:
    queue, ticks = Queue(clients), Ticks(clients, LEASE_S)
    now = await queue.time_us()
    await queue.push_delayed(job(1), now - 1_000_000)
    await queue.push_delayed(job(2), now + 60_000_000)
    assert (await ticks.tick()).due == 1
    depth = await queue.depth()
    assert (depth.pending, depth.delayed) == (1, 1)


async def test_one_leader_at_a_time(clients: RedisClients) -> None:
    ticks = Ticks(clients, LEASE_S)
    assert [await ticks.lead("r", "a", 5), await ticks.lead("r", "b", 5), await ticks.lead("r", "a", 5)] == [
        True,
        False,
        True,
    ]


async def test_a_lease_shows_what_is_held_and_ends(redis_server: RedisServer, clients: RedisClients) -> None:
    queue, lease = Queue(clients), LeaseClient(redis_server.url, "", "w1", LEASE_S)
    await queue.push(job(1), 0)
    [entry] = (await Claims(clients, "w1", LEASE_S).claim(1)).entries
    assert await lease.renew() == [entry]
    assert await queue.worker_alive("w1")
    assert await lease.release() == 1
    assert not await queue.worker_alive("w1")
    assert await clients.commands.lrange("jobs:pending", 0, -1) == [entry]
    assert await keys(clients) == {"jobs:mark:run-1:0", "jobs:pending"}
    await lease.close()


async def test_a_server_that_lost_its_scripts_is_told_them_again(clients: RedisClients) -> None:
    queue = Queue(clients)
    await queue.push(job(1), 0)
    await clients.commands.script_flush()
    assert await queue.push(job(2), 0)


async def test_nothing_but_the_contract_stands_in_redis(clients: RedisClients) -> None:
    queue, claims = Queue(clients), Claims(clients, "w1", LEASE_S)
    await queue.push(job(1), 0)
    [entry] = (await claims.claim(1)).entries
    await claims.claim(0, [entry])
    await Ticks(clients, LEASE_S).tick()
    assert await keys(clients) == {"jobs:mark:run-1:0", "jobs:workers", "jobs:tick"}


async def _tick_at(queue: Queue, *, hold_ms: int, age_ms: int = 0) -> str:
    now = await queue.time_us() // 1000
    return f"{now - age_ms} {now + hold_ms}"


async def test_a_push_that_redis_refused_is_made_again(clients: RedisClients) -> None:
    """A stranger's key of our name: once it is gone, nothing waits for the mark of a push that never was."""
    queue = Queue(clients)
    await clients.commands.set(clients.keys.pending(), "a stranger's")
    for push in (queue.push(job(1), 0), queue.push_many([(job(2), 0), (job(3), 0)])):
        with pytest.raises(RedisDown, match="WRONGTYPE"):
            await push
    await clients.commands.delete(clients.keys.pending())
    assert await queue.push(job(1), 0)
    assert await queue.push_many([(job(2), 0), (job(3), 0), (job(3), 0)]) == 2
    assert (await queue.depth()).pending == 3


@pytest.mark.parametrize("name", ["pending", "dead", "workers", "delayed"])
async def test_a_key_of_another_type_is_named_before_anything_is_written(
    clients: RedisClients, name: str
) -> None:
    await clients.check_writing()
    key = getattr(clients.keys, name)()
    await clients.commands.set(key, "a stranger's")
    with pytest.raises(RedisDown, match=f"{key} is not Tailrun's"):
        await clients.check_writing()


async def test_a_redis_that_takes_no_writes_is_named(
    clients: RedisClients, redis_server: RedisServer
) -> None:
    """A replica: this is what a fail-over leaves behind, and it answers every ping."""
    await clients.commands.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        assert await clients.commands.ping()
        with pytest.raises(RedisDown, match="read only"):
            await clients.ping()
    finally:
        await clients.commands.execute_command("REPLICAOF", "NO", "ONE")
