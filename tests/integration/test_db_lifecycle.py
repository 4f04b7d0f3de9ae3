"""A run's way through the database: made, started, claimed, ended, found again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.run_rows import NOW, ended, line, new_run, running, snapshot

from app.core.errors import Conflict, InvalidRequest, NotFound
from app.core.events import Event, EventType
from app.core.models import Fence, RunKind, RunStatus
from app.db.engine import Database
from app.db.log_store import LogStore
from app.db.run_queries import OpenRun
from app.db.run_store import Batch, Outcome, RunStore


@pytest.fixture
def store(database: Database) -> RunStore:
    return RunStore(database)


async def test_create_writes_the_row_and_its_status_events(store: RunStore, database: Database) -> None:
    new = new_run(labels={"a": "b"}, kind=RunKind.TASK, project="p", type="t", retry_of="r0")
    created = await store.create(new, NOW)
    assert created.fresh
    assert created.run.status is RunStatus.QUEUED
    assert [event.data for event in created.events] == [{"status": "created"}, {"status": "queued"}]
    assert await store.get(new.run_id) == created.run
    assert await LogStore(database).page(new.run_id, 0, 10) == created.events


async def test_a_held_run_is_created_only(store: RunStore) -> None:
    created = await store.create(new_run(start=False), NOW)
    assert (created.run.status, created.run.queued_at, created.run.last_seq) == (RunStatus.CREATED, None, 1)


async def test_an_idempotency_key_makes_one_run(store: RunStore) -> None:
    """The same key and request give the first run; another request with that key is a conflict."""
    first = await store.create(new_run(idempotency_key="k", request_hash="h"), NOW)
    again = await store.create(new_run(idempotency_key="k", request_hash="h"), NOW + 5)
    assert (again.run, again.events, again.fresh) == (first.run, [], False)
    with pytest.raises(Conflict):
        await store.create(new_run(idempotency_key="k", request_hash="other"), NOW)
    assert (await store.create(new_run(idempotency_key="k", request_hash="h", user_id="bob"), NOW)).fresh


async def test_start_is_idempotent(store: RunStore) -> None:
    run = (await store.create(new_run(start=False), NOW)).run
    first = await store.start(run.run_id, NOW + 1)
    assert (first.run.status, first.run.queued_at) == (RunStatus.QUEUED, NOW + 1)
    assert [(event.seq, event.data) for event in first.events] == [(2, {"status": "queued"})]
    assert (await store.start(run.run_id, NOW + 2)).events == []
    await store.claim([run.run_id], "w1", NOW + 3)
    assert (await store.start(run.run_id, NOW + 4)).events == []
    await store.commit(Fence(run.run_id, 1, "w1"), 2, ended(run.run_id, 3))
    with pytest.raises(Conflict):
        await store.start(run.run_id, NOW + 5)


async def test_why_a_run_waits_is_said_once(store: RunStore, database: Database) -> None:
    """Several processes may say it: a line with which the log ends already is not repeated."""
    run_id = (await store.create(new_run(), NOW)).run.run_id
    said = [await store.note_waiting(run_id, text, NOW + 1) for text in ("a", "a", "b", "b", "a")]
    assert [[event.content for event in each.events] for each in said] == [["a"], [], ["b"], [], ["a"]]
    lines = await LogStore(database).page(run_id, 2, 10)
    assert [(event.seq, event.content) for event in lines] == [(3, "a"), (4, "b"), (5, "a")]
    await store.claim([run_id], "w1", NOW + 2)
    assert (await store.note_waiting(run_id, "c", NOW + 3)).events == []


async def test_an_unknown_run_is_not_found(store: RunStore) -> None:
    assert await store.get("nobody") is None
    assert await store.owner("nobody") is None
    for call in (store.start, store.request_cancel):
        with pytest.raises(NotFound):
            await call("nobody", NOW)


@pytest.mark.parametrize("start", [True, False])
async def test_cancel_ends_a_waiting_run_at_once(store: RunStore, database: Database, start: bool) -> None:
    """The row, its `end` event and the fence change together, and the run is never claimed."""
    run = (await store.create(new_run(start=start), NOW)).run
    changed = await store.request_cancel(run.run_id, NOW + 1)
    assert changed.run.status is RunStatus.CANCELLED
    assert (changed.run.attempt, changed.run.ended_at, changed.run.cancel_requested_at) == (
        1,
        NOW + 1,
        NOW + 1,
    )
    assert changed.run.error
    assert changed.run.error["code"] == "cancelled"
    (last,) = changed.events
    assert (last.type, last.seq, last.data["status"]) == (EventType.END, run.last_seq + 1, "cancelled")
    assert (await LogStore(database).page(run.run_id, run.last_seq, 10)) == [last]
    before = await snapshot(database, run.run_id)
    assert (await store.request_cancel(run.run_id, NOW + 2)).events == []
    assert await store.claim([run.run_id], "w1", NOW + 3) == []
    assert await snapshot(database, run.run_id) == before


async def test_cancel_of_a_running_run_is_a_timestamp(store: RunStore) -> None:
    run, fence = await running(store)
    changed = await store.request_cancel(run.run_id, NOW + 5)
    assert (changed.run.status, changed.run.cancel_requested_at, changed.events) == (
        RunStatus.RUNNING,
        NOW + 5,
        [],
    )
    again = await store.request_cancel(run.run_id, NOW + 9)
    assert again.run.cancel_requested_at == NOW + 5
    committed = await store.commit(fence, 2, Batch(events=[line(run.run_id, 3)]))
    assert committed.cancel_requested_at == NOW + 5


async def test_a_run_given_back_with_a_cancel_pending_is_not_claimed_but_ended(store: RunStore) -> None:
    run, fence = await running(store)
    await store.request_cancel(run.run_id, NOW + 5)
    status = Event(3, EventType.STATUS, NOW + 6, run.run_id, 1, data={"status": "queued"})
    requeued = Batch(events=[status], outcome=Outcome(RunStatus.QUEUED))
    assert (await store.commit(fence, 2, requeued)).cancel_requested_at == NOW + 5
    assert await store.claim([run.run_id], "w2", NOW + 7) == []
    ended_run = (await store.request_cancel(run.run_id, NOW + 8)).run
    assert (ended_run.status, ended_run.cancel_requested_at) == (RunStatus.CANCELLED, NOW + 5)


async def test_claim_takes_what_waits_and_is_due(store: RunStore) -> None:
    """Queued, created (pushed by hand) and due runs; not the running, the future or the unknown ones."""
    queued = (await store.create(new_run(), NOW)).run
    held = (await store.create(new_run(start=False), NOW)).run
    taken, _ = await running(store)
    later, fence = await running(store)
    retry = Outcome(RunStatus.QUEUED, next_attempt_at=NOW + 100, counts_retry=True, at=NOW)
    await store.commit(fence, 2, Batch(outcome=retry))
    ids = [queued.run_id, held.run_id, taken.run_id, later.run_id, "unknown"]
    claimed = await store.claim(ids, "w2", NOW + 99)
    assert {run.run_id for run in claimed} == {queued.run_id, held.run_id}
    assert {(run.status, run.attempt, run.worker_id, run.started_at) for run in claimed} == {
        (RunStatus.RUNNING, 1, "w2", NOW + 99),
    }
    assert all([await store.get(run.run_id) == run for run in claimed])
    (again,) = await store.claim(ids, "w3", NOW + 100)
    assert (again.run_id, again.attempt, again.retries, again.next_attempt_at) == (later.run_id, 2, 1, None)
    assert await store.claim([], "w2", NOW) == []


async def test_take_over_needs_the_row_as_it_was_seen(store: RunStore, database: Database) -> None:
    run, _ = await running(store)
    assert await store.take_over(replace(run, worker_id="other"), "w2", NOW + 2) is None
    assert await store.take_over(replace(run, attempt=9), "w2", NOW + 2) is None
    after = await store.take_over(run, "w2", NOW + 2)
    assert after
    assert (after.attempt, after.worker_id, after.redeliveries, after.retries) == (2, "w2", 1, 0)
    assert after.started_at == run.started_at
    assert await store.take_over(run, "w3", NOW + 3) is None
    attempts = (await snapshot(database, run.run_id))[1]
    assert [(row.attempt, row.worker_id, row.outcome) for row in attempts] == [
        (1, "w1", "lost"),
        (2, "w2", None),
    ]


async def test_take_over_of_a_waiting_run_is_no_redelivery(store: RunStore) -> None:
    run = (await store.create(new_run(), NOW)).run
    after = await store.take_over(run, "w1", NOW + 1)
    assert after
    assert (after.attempt, after.redeliveries, after.status) == (1, 0, RunStatus.RUNNING)
    _, fence = await running(store)
    await store.commit(fence, 2, ended(fence.run_id, 3))
    done = await store.get(fence.run_id)
    assert done
    assert await store.take_over(done, "w2", NOW) is None


async def test_lists_page_newest_first_with_filters(store: RunStore) -> None:
    made = [(await store.create(new_run(start=bool(i % 2)), NOW + i // 2)).run for i in range(7)]
    await store.create(new_run(user_id="bob"), NOW)
    seen, cursor = [], None
    for _ in range(4):
        page, cursor = await store.page(user_id="ann", limit=2, cursor=cursor)
        seen += [run.run_id for run in page]
    assert cursor is None
    assert seen == [run.run_id for run in reversed(made)]
    queued, _ = await store.page(user_id="ann", status=RunStatus.QUEUED)
    assert [run.run_id for run in queued] == [run.run_id for run in reversed(made) if run.queued_at]
    assert len((await store.page(user_id=None))[0]) == 8
    for broken in ("x", "5", ".r", "٣.r", "9" * 30 + ".r"):
        with pytest.raises(InvalidRequest):
            await store.page(user_id=None, cursor=broken)


async def test_a_list_leaves_specs_out(store: RunStore) -> None:
    await store.create(new_run(spec={"prompt": "x" * 1000}), NOW)
    (run,), _ = await store.page(user_id="ann")
    assert run.spec == {}


async def test_what_the_reconciler_and_the_hubs_ask(store: RunStore) -> None:
    waiting = [(await store.create(new_run(), NOW + i)).run for i in range(3)]
    run, fence = await running(store)
    later, later_fence = await running(store)
    retry = Outcome(RunStatus.QUEUED, next_attempt_at=NOW + 50, at=NOW)
    await store.commit(later_fence, 2, Batch(outcome=retry))
    ids = [item.run_id for item in waiting]
    queued = [OpenRun(item.run_id, None, NOW + i) for i, item in enumerate(waiting)]
    queued.append(OpenRun(later.run_id, None, NOW))
    assert await store.open_runs(RunStatus.QUEUED, 9) == queued
    assert await store.open_runs(RunStatus.QUEUED, 1, after_id=ids[0]) == [queued[1]]
    assert await store.open_runs(RunStatus.RUNNING, 9) == [OpenRun(run.run_id, "w1", NOW)]
    assert await store.open_runs(RunStatus.RUNNING, 9, after_id=run.run_id) == []
    assert [mine.run_id for mine in await store.running_on("w1")] == [run.run_id]
    assert await store.running_on("w2") == []
    assert sorted(one.run_id for one in await store.many([*ids, "unknown"])) == ids
    assert await store.counts([RunStatus.RUNNING]) == {RunStatus.RUNNING: 1}
    assert await store.counts() == {RunStatus.QUEUED: 4, RunStatus.RUNNING: 1}
    assert await store.oldest_queued_at() == NOW
    assert await store.heads([run.run_id, ids[0], "unknown"]) == {
        run.run_id: (2, RunStatus.RUNNING),
        ids[0]: (2, RunStatus.QUEUED),
    }
    assert await store.heads([]) == {}
    owner = await store.owner(run.run_id)
    assert owner
    assert (owner.attempt, owner.worker_id, owner.status, owner.last_seq) == (1, "w1", RunStatus.RUNNING, 2)
    await store.commit(fence, 2, ended(run.run_id, 3))
    assert await store.heads([run.run_id]) == {run.run_id: (3, RunStatus.SUCCEEDED)}


async def test_nothing_waits_in_an_empty_database(store: RunStore) -> None:
    assert await store.counts() == {}
    assert await store.oldest_queued_at() is None
    assert await store.page(user_id=None) == ([], None)


async def test_a_new_attempt_forgets_the_error_of_the_last(store: RunStore, database: Database) -> None:
    run, fence = await running(store)
    error = {"code": "start_failed", "message": "no such program"}
    status = Event(3, EventType.STATUS, NOW + 3, run.run_id, 1, data={"status": "queued"})
    outcome = Outcome(RunStatus.QUEUED, exit_code=1, error=error, next_attempt_at=NOW + 9, counts_retry=True)
    await store.commit(fence, 2, Batch(events=[status], outcome=outcome))
    between = await store.get(run.run_id)
    assert between
    assert (between.status, between.error, between.retries, between.worker_id) == (
        RunStatus.QUEUED,
        error,
        1,
        None,
    )
    assert (between.next_attempt_at, between.ended_at) == (NOW + 9, None)
    (again,) = await store.claim([run.run_id], "w2", NOW + 9)
    assert (again.error, again.exit_code) == (None, None)
    await store.commit(Fence(run.run_id, 2, "w2"), 3, ended(run.run_id, 4))
    attempts = (await snapshot(database, run.run_id))[1]
    assert [(row.attempt, row.outcome, row.ended_at) for row in attempts] == [
        (1, "queued", NOW + 3),
        (2, "succeeded", NOW + 4),
    ]
