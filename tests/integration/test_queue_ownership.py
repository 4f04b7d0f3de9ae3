"""The questions a worker asks about its runs, with real servers and the holes that they close."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from support import seeded_runs
from support.run_rows import NOW, new_run
from support.seeded_runs import Seed
from support.servers import RedisServer

from app.core.models import Fence, Job, Run, RunStatus
from app.db.engine import Database
from app.db.migrate import migrate
from app.db.run_commit import Batch, Outcome
from app.db.run_store import RunStore
from app.redis.claims import Claims
from app.redis.clients import RedisClients
from app.redis.publisher import Publisher
from app.redis.queue import Queue
from app.worker import ownership
from app.worker.attempts import Attempt, InFlight
from app.worker.job_queue import JobQueue
from app.worker.ownership import Ownership, Watch
from tailrun.process.stop import StopReason

LEASE_S = 5.0


@dataclass
class Worker:
    """One worker's queue and ownership, without its loop and lease thread."""

    clients: RedisClients
    runs: RunStore
    lease_age_s: float = 0.0
    heartbeats: int = 0
    adopted: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.in_flight = InFlight()
        self.claims = Claims(self.clients, "w1", LEASE_S)
        self.pushes = Queue(self.clients)
        self.queue = JobQueue(
            self.claims,
            self.pushes,
            Publisher(self.clients),
            self.runs,
            self.in_flight,
            worker_id="w1",
            max_redeliveries=3,
        )
        watch = Watch(LEASE_S, lambda: self.lease_age_s, self._beat, self._adopt)
        self.ownership = Ownership(self.in_flight, self.queue, self.runs, "w1", watch)

    def _beat(self) -> None:
        self.heartbeats += 1

    async def _adopt(self, run: Run) -> None:
        self.adopted.append(run)

    async def submit(self) -> Run:
        run = (await self.runs.create(new_run(), NOW)).run
        await self.pushes.push(Job.of(run, NOW), 0)
        return run

    async def start_one(self) -> Attempt:
        await self.submit()
        [claimed] = await self.queue.claim(1)
        return self.start(claimed)

    def start(self, attempt: Attempt) -> Attempt:
        self.in_flight[attempt.run.run_id] = attempt
        return attempt

    async def held(self) -> list[bytes]:
        return await self.clients.commands.lrange("jobs:processing:w1", 0, -1)


@pytest.fixture
async def worker(redis_server: RedisServer, sqlite_url: str) -> AsyncIterator[Worker]:
    migrate(sqlite_url)
    db, clients = Database(sqlite_url), RedisClients(redis_server.url)
    yield Worker(clients, RunStore(db))
    await clients.close()
    await db.close()


async def test_a_stranger_is_given_back(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply to a claim was lost: Redis says that we hold an entry we do not know."""
    await worker.submit()
    [entry] = (await worker.claims.claim(1)).entries
    worker.ownership.held(await worker.held())
    await worker.ownership.check()
    assert await worker.held() == [entry], "it may still be on its way to us"
    monkeypatch.setattr(ownership, "UNKNOWN_AFTER_S", -1.0)
    await worker.ownership.check()
    assert await worker.held() == []
    [claimed] = await worker.queue.claim(1)
    assert (claimed.entry, claimed.run.attempt) == (entry, 1)


async def test_what_is_in_flight_is_no_stranger(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = await worker.start_one()
    monkeypatch.setattr(ownership, "UNKNOWN_AFTER_S", -1.0)
    worker.ownership.held(await worker.held())
    await worker.ownership.check()
    assert await worker.held() == [attempt.entry]


async def test_an_entry_that_redis_lost_is_entered_again(worker: Worker) -> None:
    """The run is still ours by its row, so it goes on."""
    attempt = await worker.start_one()
    await worker.clients.commands.flushall()
    worker.ownership.held(await worker.held())
    await worker.ownership.check()
    assert await worker.held() == [attempt.entry]
    assert not attempt.stop.stopped


async def test_a_run_that_was_taken_over_is_stopped(worker: Worker) -> None:
    """Its entry is missing because a reaper moved it and a successor has the row."""
    attempt = await worker.start_one()
    assert await worker.runs.take_over(attempt.run, "w2", NOW) is not None
    await worker.clients.commands.delete("jobs:processing:w1")
    worker.ownership.held([])
    await worker.ownership.check()
    assert attempt.stop.reason is StopReason.LOST
    assert await worker.held() == []


async def test_without_redis_the_database_keeps_the_programs_alive(worker: Worker) -> None:
    attempt = await worker.start_one()
    worker.lease_age_s = 60.0
    await worker.ownership.check()
    assert worker.heartbeats == 1
    assert not attempt.stop.stopped


async def test_without_redis_and_database_the_programs_are_stopped_after_a_lease(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = await worker.start_one()
    worker.lease_age_s = 60.0
    dead = RunStore(Database("sqlite:////nowhere/at/all.db"))
    monkeypatch.setattr(worker.ownership, "_runs", dead)
    await worker.ownership.check()
    assert not attempt.stop.stopped, "the lease has not run out yet"
    later = time.monotonic() + LEASE_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    await worker.ownership.check()
    assert attempt.stop.reason is StopReason.LOST


async def test_a_run_that_is_ours_without_our_knowing_is_adopted(worker: Worker) -> None:
    """The database took our claim, but its reply was lost. Two looks, for one may be too early."""
    run = await worker.submit()
    await worker.runs.claim([run.run_id], "w1", NOW)
    await worker.ownership.adopt_orphans()
    assert worker.adopted == []
    await worker.ownership.adopt_orphans()
    assert [adopted.run_id for adopted in worker.adopted] == [run.run_id]


async def test_an_orphan_is_found_among_many_runs_of_others(worker: Worker, sqlite_url: str) -> None:
    """More than a page of them, whose ids come first."""
    db = Database(sqlite_url)
    await seeded_runs.seed(db, Seed(ended=1, queued=1, running=1_200))
    await db.close()
    run = await worker.submit()
    await worker.runs.claim([run.run_id], "w1", NOW)
    for _ in range(2):
        await worker.ownership.adopt_orphans()
    assert [adopted.run_id for adopted in worker.adopted] == [run.run_id]


async def test_an_adopted_run_is_taken_over_and_held(worker: Worker) -> None:
    run = await worker.submit()
    [seen] = await worker.runs.claim([run.run_id], "w1", NOW)
    claimed = await worker.queue.adopt(seen, NOW)
    assert claimed is not None
    assert claimed.run.attempt == 2
    assert claimed.entry in await worker.held()


async def test_a_database_that_is_away_gives_the_entries_back(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await worker.submit()
    dead = RunStore(Database("sqlite:////nowhere/at/all.db"))
    with monkeypatch.context() as patch:
        patch.setattr(worker.queue, "_runs", dead)
        with pytest.raises(Exception, match="database"):
            await worker.queue.claim(1)
    assert (await worker.pushes.depth()).pending == 1
    [claimed] = await worker.queue.claim(1)
    assert (claimed.run.run_id, claimed.run.redeliveries) == (run.run_id, 0)


async def test_a_cancel_request_in_the_row_stops_the_run(worker: Worker) -> None:
    attempt = await worker.start_one()
    await worker.runs.request_cancel(attempt.run.run_id, NOW)
    await worker.ownership.reread()
    assert attempt.stop.reason is StopReason.CANCEL


async def suspected(worker: Worker, deaths: int = 2) -> Run:
    """A run whose workers died, the last of them `deaths - 1` times taken over."""
    run = await worker.submit()
    [seen] = await worker.runs.claim([run.run_id], "dead-0", NOW)
    for n in range(1, deaths):
        taken = await worker.runs.take_over(seen, f"dead-{n}", NOW)
        assert taken is not None
        seen = taken
    return seen


async def test_a_run_that_lost_two_workers_waits_until_it_is_alone(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is not touched meanwhile, and its entry, which is in no task's hands, is no stranger."""
    other = await worker.start_one()
    seen = await suspected(worker)
    assert await worker.queue.claim(5) == []
    assert worker.in_flight.aside is not None
    assert (await worker.runs.get(seen.run_id)) == seen
    monkeypatch.setattr(ownership, "UNKNOWN_AFTER_S", -1.0)
    worker.ownership.held(await worker.held())
    await worker.ownership.check()
    assert len(await worker.held()) == 2
    del worker.in_flight[other.run.run_id]
    [claimed] = await worker.queue.take_aside()
    assert (claimed.run.run_id, claimed.alone, claimed.run.redeliveries) == (seen.run_id, True, 2)
    assert worker.in_flight.aside is None


async def test_of_several_that_run_alone_one_is_taken(worker: Worker) -> None:
    """The others, and whatever came with them, go back to where they are taken next, by other workers."""
    first = await suspected(worker)
    await suspected(worker)
    await suspected(worker, deaths=1)
    [claimed] = await worker.queue.claim(5)
    assert (claimed.run.run_id, claimed.alone) == (first.run_id, True)
    assert (await worker.pushes.depth()).pending == 2
    assert await worker.held() == [claimed.entry]


async def test_a_run_that_lost_one_worker_has_company(worker: Worker) -> None:
    await worker.start_one()
    seen = await suspected(worker, deaths=1)
    [claimed] = await worker.queue.claim(5)
    assert (claimed.run.run_id, claimed.alone, claimed.run.redeliveries) == (seen.run_id, False, 1)


async def test_a_retry_of_a_run_that_runs_alone_runs_alone(worker: Worker) -> None:
    """The fast claim, of many at once, leaves it out."""
    await worker.start_one()
    seen = await suspected(worker, deaths=3)
    requeued = Batch(outcome=Outcome(RunStatus.QUEUED, at=NOW))
    await worker.runs.commit(Fence(seen.run_id, seen.attempt, str(seen.worker_id)), seen.last_seq, requeued)
    assert await worker.queue.claim(5) == []
    assert worker.in_flight.aside is not None
