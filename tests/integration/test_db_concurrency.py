"""Many at once: one owner, one row per key, no lock that anybody trips over."""

from __future__ import annotations

import asyncio
from collections import Counter

from support.run_rows import NOW, ended, lines, new_run, running

from app.core.errors import Conflict, LostOwnership
from app.core.models import Fence, RunStatus
from app.db.engine import Database
from app.db.log_store import LogStore
from app.db.run_store import Batch, RunStore

ROUNDS = 5


async def test_concurrent_claims_have_one_winner(database: Database, migrated_url: str, effort: int) -> None:
    """Workers that claim overlapping sets, in any order, share them out; nobody deadlocks."""
    rounds = ROUNDS * effort
    others = [Database(migrated_url), Database(migrated_url)]
    stores = [RunStore(db) for db in (database, *others)]
    for _ in range(rounds):
        ids = [(await stores[0].create(new_run(), NOW)).run.run_id for _ in range(5)]
        claims = await asyncio.gather(
            *(stores[n % 3].claim(ids if n % 2 else ids[::-1], f"w{n}", NOW + 1) for n in range(12)),
        )
        owners = {run.run_id: run.worker_id for claim in claims for run in claim}
        assert Counter(run.run_id for claim in claims for run in claim) == Counter(ids)
        for run_id, worker_id in owners.items():
            run = await stores[0].get(run_id)
            assert run
            assert (run.attempt, run.worker_id) == (1, worker_id)
    for db in others:
        await db.close()


async def test_concurrent_take_overs_have_one_winner(database: Database, effort: int) -> None:
    rounds = ROUNDS * effort
    store = RunStore(database)
    for _ in range(rounds):
        seen, _ = await running(store)
        results = await asyncio.gather(*(store.take_over(seen, f"n{n}", NOW + 2) for n in range(8)))
        assert len([run for run in results if run]) == 1


async def test_a_claim_and_a_cancel_at_once_leave_one_truth(database: Database, effort: int) -> None:
    """Either the run was claimed and has a cancel pending, or it ended and nobody owns it."""
    rounds = ROUNDS * effort
    store = RunStore(database)
    for round_no in range(rounds):
        run_id = (await store.create(new_run(), NOW)).run.run_id
        calls = [store.claim([run_id], "w1", NOW + 1), store.request_cancel(run_id, NOW + 1)]
        results = await asyncio.gather(*(calls if round_no % 2 else calls[::-1]))
        claimed = next(result for result in results if isinstance(result, list))
        run = await store.get(run_id)
        assert run
        assert run.cancel_requested_at == NOW + 1
        assert run.status is (RunStatus.RUNNING if claimed else RunStatus.CANCELLED)
        assert run.last_seq == (2 if claimed else 3)


async def test_the_owner_and_its_successor_write_one_sequence(database: Database, effort: int) -> None:
    """However a commit and a take-over interleave, no line is doubled or overwritten."""
    rounds = ROUNDS * effort
    store, logs = RunStore(database), LogStore(database)
    for _ in range(rounds):
        seen, fence = await running(store)
        batch = Batch(events=lines(seen.run_id, 3, 40))

        async def succeed(seen: object = seen, run_id: str = seen.run_id) -> None:
            after = await store.take_over(seen, "w2", NOW + 2)  # pyright: ignore[reportArgumentType]
            assert after
            inherited = lines(run_id, after.last_seq + 1, 50)
            await store.commit(Fence(run_id, after.attempt, "w2"), after.last_seq, Batch(events=inherited))

        results = await asyncio.gather(store.commit(fence, 2, batch), succeed(), return_exceptions=True)
        assert [error for error in results if isinstance(error, BaseException)] in ([], [results[0]])
        if isinstance(results[0], BaseException):
            assert isinstance(results[0], LostOwnership)
        events = await logs.page(seen.run_id, 0, 100)
        assert [event.seq for event in events] == list(range(1, 51))
        run = await store.get(seen.run_id)
        assert run
        assert (run.last_seq, run.log_lines) == (50, 48)


async def test_one_idempotency_key_used_by_many_at_once(database: Database, effort: int) -> None:
    rounds = ROUNDS * effort
    store = RunStore(database)
    for round_no in range(rounds):
        results = await asyncio.gather(
            *(store.create(new_run(idempotency_key=f"k{round_no}", request_hash="h"), NOW) for _ in range(6)),
            store.create(new_run(idempotency_key=f"k{round_no}", request_hash="other"), NOW),
            return_exceptions=True,
        )
        made = [result for result in results if not isinstance(result, BaseException)]
        assert all(isinstance(error, Conflict) for error in results if isinstance(error, BaseException))
        assert len({created.run.run_id for created in made}) == 1
        assert [created.fresh for created in made].count(True) == 1


async def test_start_by_many_at_once_makes_one_event(database: Database, effort: int) -> None:
    rounds = ROUNDS * effort
    store = RunStore(database)
    for _ in range(rounds):
        run_id = (await store.create(new_run(start=False), NOW)).run.run_id
        changes = await asyncio.gather(*(store.start(run_id, NOW + 1) for _ in range(6)))
        assert sum(len(change.events) for change in changes) == 1
        assert {change.run.status for change in changes} == {RunStatus.QUEUED}


async def test_writers_of_one_file_wait_for_each_other(
    database: Database, migrated_url: str, effort: int
) -> None:
    """Several `Database` objects write at once (as processes do): nobody meets a lock as an error."""
    rounds = ROUNDS * effort
    others = [Database(migrated_url) for _ in range(3)]
    stores = [RunStore(db) for db in (database, *others)]

    async def whole_run(store: RunStore, worker_id: str) -> None:
        run, fence = await running(store, worker_id)
        for after in range(2, 22, 4):
            await store.commit(fence, after, Batch(events=lines(run.run_id, after + 1, after + 4)))
        await store.request_cancel(run.run_id, NOW)
        await store.commit(fence, 22, ended(run.run_id, 23))

    async def many(store: RunStore, n: int) -> None:
        for round_no in range(rounds):
            await whole_run(store, f"w{n}-{round_no}")

    await asyncio.gather(*(many(store, n) for n, store in enumerate(stores) for _ in range(2)))
    assert await stores[0].counts() == {RunStatus.SUCCEEDED: 2 * rounds * len(stores)}
    for db in others:
        await db.close()
