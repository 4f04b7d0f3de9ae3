"""Runs that wait for somebody: parked by their owner alone, woken once, and never lost in between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.run_rows import NOW, ended, new_run, parked, running, snapshot

from app.core.agent_records import Approval, Decision, InboxMessage, MessageMode, WaitingFor
from app.core.errors import Conflict, LostOwnership
from app.core.events import EventType
from app.core.models import Fence, Run, RunStatus
from app.db.approval_store import ApprovalStore, Decided
from app.db.engine import Database
from app.db.inbox_store import InboxStore
from app.db.run_store import Batch, Outcome, RunStore
from app.db.webhook_store import WebhookStore

UNTIL = NOW + 1_000


@pytest.fixture
def runs(database: Database) -> RunStore:
    return RunStore(database)


@pytest.fixture
def asking(database: Database) -> ApprovalStore:
    return ApprovalStore(database)


@pytest.fixture
def box(database: Database) -> InboxStore:
    return InboxStore(database)


def question(run_id: str, step_id: str = "c1-0", expires_at: int = UNTIL) -> Approval:
    return Approval(
        run_id=run_id, step_id=step_id, args_sha256="a", rule="auto", asked_at=NOW, expires_at=expires_at
    )


def message(run_id: str, mode: MessageMode = MessageMode.NEXT, **fields: Any) -> InboxMessage:
    return InboxMessage(run_id=run_id, content="do it", mode=mode, by="ann", created_at=NOW + 7, **fields)


async def row(runs: RunStore, run_id: str) -> Run:
    found = await runs.get(run_id)
    assert found
    return found


async def waiting(
    runs: RunStore,
    asking: ApprovalStore,
    steps: tuple[str, ...] = ("c1-0",),
    kind: WaitingFor = WaitingFor.APPROVAL,
    **fields: Any,
) -> Run:
    run, fence = await running(runs, **fields)
    if steps:
        await asking.ask(fence, [question(run.run_id, step) for step in steps])
    await runs.commit(fence, 2, parked(run.run_id, 3, kind))
    found = await row(runs, run.run_id)
    assert found.status is RunStatus.WAITING
    return found


async def test_a_parked_run_has_no_owner_and_says_what_it_waits_for(
    runs: RunStore, asking: ApprovalStore
) -> None:
    """No claim and no take-over gets it, and its former owner writes nothing more."""
    run = await waiting(runs, asking)
    assert (run.worker_id, run.waiting_for, run.next_attempt_at) == (None, "approval", UNTIL)
    assert await runs.claim([run.run_id], "w2", UNTIL + 1) == []
    assert await runs.take_over(run, "w2", UNTIL + 1) is None
    with pytest.raises(LostOwnership):
        await runs.commit(Fence(run.run_id, 1, "w1"), 3, ended(run.run_id, 4))
    assert await runs.backlog("ann", 9) == 1


async def test_a_repeated_park_changes_nothing(
    runs: RunStore, asking: ApprovalStore, database: Database
) -> None:
    run, fence = await running(runs)
    await asking.ask(fence, [question(run.run_id)])
    await runs.commit(fence, 2, parked(run.run_id, 3))
    before = await snapshot(database, run.run_id)
    await runs.commit(fence, 2, parked(run.run_id, 3))
    assert await snapshot(database, run.run_id) == before


@pytest.mark.parametrize("decision", [Decision.APPROVED, Decision.DENIED])
async def test_the_last_decision_wakes_a_run_once(
    runs: RunStore, asking: ApprovalStore, decision: Decision
) -> None:
    """However many come at once; the run is claimed with the next attempt, and nothing was counted."""
    steps = tuple(f"c1-{k}" for k in range(4))
    run = await waiting(runs, asking, steps)
    decide = [asking.decide(question(run.run_id, step), decision, NOW + 6, by="ann") for step in steps * 2]
    found = await asyncio.gather(*decide, return_exceptions=True)
    done = [each for each in found if isinstance(each, Decided)]
    refused = [each.code for each in found if isinstance(each, Conflict)]
    assert (len(done), refused) == (4, ["decided"] * 4)
    woken = [each for each in done if each.changed.run.status is RunStatus.QUEUED]
    assert len(woken) == 1
    assert [event.type for event in woken[0].changed.events] == [EventType.APPROVAL, EventType.STATUS]
    assert sorted(event.seq for each in done for event in each.changed.events) == [4, 5, 6, 7, 8]
    [again] = await runs.claim([run.run_id], "w2", NOW + 7)
    assert (again.attempt, again.last_seq, again.retries, again.redeliveries) == (2, 8, 0, 0)
    assert (again.waiting_for, again.next_attempt_at) == (None, None)


@pytest.mark.parametrize("what", ["decision", "interrupt", "answer", "cancel"])
async def test_what_comes_before_the_park_is_not_waited_for(
    runs: RunStore, asking: ApprovalStore, box: InboxStore, what: str
) -> None:
    """Between the question and the park there is a moment; the run is queued then, and not lost."""
    run, fence = await running(runs)
    kind = WaitingFor.ANSWER if what == "answer" else WaitingFor.APPROVAL
    if kind is WaitingFor.APPROVAL:
        await asking.ask(fence, [question(run.run_id)])
    if what == "decision":
        early = await asking.decide(question(run.run_id), Decision.APPROVED, NOW + 3, by="ann")
        assert early.changed.events == []
    elif what == "cancel":
        await runs.request_cancel(run.run_id, NOW + 3)
    else:
        mode = MessageMode.INTERRUPT if what == "interrupt" else MessageMode.NEXT
        assert (await box.add(message(run.run_id, mode))).changed.events == []
    committed = await runs.commit(fence, 2, parked(run.run_id, 3, kind))
    found = await row(runs, run.run_id)
    assert (found.status, found.next_attempt_at, found.waiting_for) == (RunStatus.QUEUED, None, None)
    assert (committed.cancel_requested_at is not None) == (what == "cancel")
    decisions = [each.decision for each in await asking.of_run(run.run_id)]
    expected = {"decision": [Decision.APPROVED], "interrupt": [Decision.DENIED], "cancel": [None]}
    assert decisions == expected.get(what, [])
    assert len(await runs.claim([run.run_id], "w2", NOW + 7)) == (what != "cancel")


async def test_a_park_and_a_decision_at_once_lose_no_run(runs: RunStore, asking: ApprovalStore) -> None:
    for _ in range(20):
        run, fence = await running(runs)
        await asking.ask(fence, [question(run.run_id)])
        park = runs.commit(fence, 2, parked(run.run_id, 3))
        await asyncio.gather(park, asking.decide(question(run.run_id), Decision.APPROVED, NOW + 5, by="ann"))
        assert (await row(runs, run.run_id)).status is RunStatus.QUEUED


async def test_a_message_that_was_seen_is_no_answer(
    runs: RunStore, asking: ApprovalStore, box: InboxStore
) -> None:
    run, fence = await running(runs)
    await box.add(message(run.run_id))
    await runs.commit(fence, 2, parked(run.run_id, 3, WaitingFor.ANSWER, inbox_upto=1))
    assert (await row(runs, run.run_id)).status is RunStatus.WAITING
    told = await asyncio.gather(*(box.add(message(run.run_id)) for _ in range(4)))
    assert sum(bool(each.changed.events) for each in told) == 1
    assert (await row(runs, run.run_id)).status is RunStatus.QUEUED


async def test_an_approval_is_waited_for_beside_messages_unless_one_interrupts(
    runs: RunStore, asking: ApprovalStore, box: InboxStore
) -> None:
    run = await waiting(runs, asking, ("c1-0", "c1-1"))
    assert (await box.add(message(run.run_id))).changed.events == []
    loud = message(run.run_id, MessageMode.INTERRUPT, idempotency_key="k")
    woken = (await box.add(loud)).changed
    assert (woken.run.status, len(woken.events)) == (RunStatus.QUEUED, 3)
    assert (await box.add(loud)).changed.events == []
    assert {each.decision for each in await asking.of_run(run.run_id)} == {Decision.DENIED}
    with pytest.raises(Conflict) as late:
        await asking.decide(question(run.run_id), Decision.APPROVED, NOW + 9, by="ann")
    assert late.value.code == "decided"


async def test_a_wait_is_over_at_its_time_and_not_before(runs: RunStore, asking: ApprovalStore) -> None:
    """By default the agent goes on and is told; whoever wants that has the run fail."""
    calm, strict = [await waiting(runs, asking, agent=agent) for agent in (None, {"on_expiry": "fail"})]
    assert await runs.overdue(UNTIL - 1, 9) == []
    assert (await runs.stop_waiting(calm.run_id, UNTIL - 1)).events == []
    assert sorted(await runs.overdue(UNTIL, 9)) == sorted([calm.run_id, strict.run_id])
    calls = [runs.stop_waiting(run.run_id, UNTIL) for run in (calm, strict) for _ in range(3)]
    changed = await asyncio.gather(*calls)
    assert sorted(len(each.events) for each in changed) == [0, 0, 0, 0, 2, 2]
    assert (await row(runs, calm.run_id)).status is RunStatus.QUEUED
    failed = await row(runs, strict.run_id)
    assert (failed.status, (failed.error or {})["code"]) == (RunStatus.FAILED, "approval_expired")
    for run in (calm, strict):
        [kept] = await asking.of_run(run.run_id)
        assert kept.decision is Decision.EXPIRED
    assert await runs.overdue(UNTIL, 9) == []


async def test_a_cancel_ends_a_waiting_run_at_once(runs: RunStore, asking: ApprovalStore) -> None:
    run = await waiting(runs, asking)
    changed = await runs.request_cancel(run.run_id, NOW + 6)
    assert (changed.run.status, changed.run.attempt, changed.run.waiting_for) == (
        RunStatus.CANCELLED,
        2,
        None,
    )
    assert [event.type for event in changed.events] == [EventType.END]
    with pytest.raises(Conflict) as late:
        await asking.decide(question(run.run_id), Decision.APPROVED, NOW + 7, by="ann")
    assert late.value.code == "finished"
    assert await asking.open_of("ann", 9) == []


async def test_open_questions_are_listed_by_user(runs: RunStore, asking: ApprovalStore) -> None:
    """Those of runs that wait; what was decided, and what is asked for just now, is not among them."""
    first = await waiting(runs, asking, ("c1-0", "c1-1"))
    other = await waiting(runs, asking, user_id="bob")
    busy, fence = await running(runs)
    await asking.ask(fence, [question(busy.run_id)])
    await asking.decide(question(first.run_id, "c1-1"), Decision.DENIED, NOW + 6, by="ann")
    [found] = await asking.open_of("ann", 9)
    assert (found.approval.run_id, found.approval.step_id) == (first.run_id, "c1-0")
    assert {each.approval.run_id for each in await asking.open_of(None, 9)} == {first.run_id, other.run_id}
    assert len(await asking.open_of(None, 1)) == 1


async def test_a_webhook_tells_of_a_wait_as_long_as_it_lasts(
    runs: RunStore, asking: ApprovalStore, database: Database
) -> None:
    hooks = WebhookStore(database)
    run = await waiting(runs, asking, webhook_url="https://example.org")
    notice = await hooks.get(run.run_id)
    assert notice
    assert (notice.next_at, notice.attempts) == (NOW + 3, 0)
    await asking.decide(question(run.run_id), Decision.APPROVED, NOW + 6, by="ann")
    assert await hooks.get(run.run_id) is None
    [again] = await runs.claim([run.run_id], "w2", NOW + 7)
    await runs.commit(Fence(run.run_id, 2, "w2"), again.last_seq, ended(run.run_id, again.last_seq + 1))
    assert await hooks.get(run.run_id) is not None
    cancelled = await waiting(runs, asking, webhook_url="https://example.org")
    await runs.request_cancel(cancelled.run_id, NOW + 8)
    told = await hooks.get(cancelled.run_id)
    assert told
    assert told.created_at == NOW + 8


async def test_an_answer_of_an_agent_is_kept_with_its_end(runs: RunStore) -> None:
    run, fence = await running(runs)
    batch = ended(run.run_id, 3)
    outcome = Outcome(RunStatus.SUCCEEDED, 0, result={"text": "done"})
    await runs.commit(fence, 2, Batch(events=batch.events, outcome=outcome))
    assert (await row(runs, run.run_id)).result == {"text": "done"}


async def test_a_run_that_was_never_parked_has_nothing_to_stop(runs: RunStore) -> None:
    created = await runs.create(new_run(), NOW)
    assert (await runs.stop_waiting(created.run.run_id, UNTIL)).events == []
