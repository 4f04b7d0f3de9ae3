"""What is kept of an agent's run: written before it is acted on, by the run's owner alone, and once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from support.run_rows import NOW, ended, model_call, new_run, running, snapshot, step

from app.core.agent_records import Approval, CallRecord, CallStatus, Decision, InboxMessage, MessageMode
from app.core.errors import Conflict, LostOwnership, NotFound
from app.core.models import Fence, StepStatus
from app.db import inbox_store
from app.db.approval_store import ApprovalStore, Decided
from app.db.call_store import CallStore
from app.db.engine import Database
from app.db.inbox_store import InboxStore
from app.db.run_store import RunStore

REPLY = b'{"text": "\xc3\xa4"}'


@pytest.fixture
def runs(database: Database) -> RunStore:
    return RunStore(database)


@pytest.fixture
def calls(database: Database) -> CallStore:
    return CallStore(database)


def answered(sent: CallRecord, **fields: Any) -> CallRecord:
    """The call with a reply of 30 + 7 tokens that cost 20."""
    counts: dict[str, Any] = {"input_tokens": 30, "output_tokens": 7, "cost_u": 20, "reply": REPLY}
    return replace(sent, status=CallStatus.ANSWERED, ended_at=NOW + 9, **(counts | fields))


def proposed(run_id: str, n: int, count: int) -> list[Any]:
    return [
        step(run_id, f"c{n}-{k}", StepStatus.PROPOSED, idx=k, call=n, call_id=f"x{k}") for k in range(count)
    ]


def question(run_id: str, step_id: str = "c1-0", **fields: Any) -> Approval:
    return replace(
        Approval(run_id=run_id, step_id=step_id, args_sha256="a", rule="auto", asked_at=NOW), **fields
    )


def message(run_id: str, content: str = "hello", **fields: Any) -> InboxMessage:
    made = InboxMessage(run_id=run_id, content=content, mode=MessageMode.NEXT, by="ann", created_at=NOW)
    return replace(made, **fields)


async def spent(runs: RunStore, run_id: str) -> tuple[int, int]:
    run = await runs.get(run_id)
    assert run
    return run.spent_tokens, run.spent_u


async def test_a_call_is_reserved_before_it_is_made_and_counted_after_it(
    runs: RunStore, calls: CallStore
) -> None:
    """The reply and the steps that it asks for are one commit; the next call adds to what is spent."""
    run, fence = await running(runs)
    sent = model_call(run.run_id, prefix={"system": "s"})
    await calls.send(fence, sent)
    assert await spent(runs, run.run_id) == (100, 50)
    asked = proposed(run.run_id, 1, 2)
    await calls.settle(fence, answered(sent), asked)
    assert await spent(runs, run.run_id) == (37, 20)
    assert await calls.of_run(run.run_id) == [answered(sent)]
    assert await runs.steps(run.run_id) == asked
    second = model_call(run.run_id, 2, reserved_u=None)
    await calls.send(fence, second)
    assert await spent(runs, run.run_id) == (137, 20)
    failed = replace(second, status=CallStatus.FAILED, input_tokens=5, estimated=True, error={"code": "c"})
    await calls.settle(fence, failed)
    assert await spent(runs, run.run_id) == (42, 20)
    assert sum(call.tokens for call in await calls.of_run(run.run_id)) == 42


async def test_a_reply_and_its_steps_are_kept_together_or_not_at_all(
    runs: RunStore, calls: CallStore, database: Database
) -> None:
    run, fence = await running(runs)
    sent = model_call(run.run_id)
    await calls.send(fence, sent)
    before = await snapshot(database, run.run_id)
    one = proposed(run.run_id, 1, 1)
    with pytest.raises(IntegrityError):
        await calls.settle(fence, answered(sent), one * 2)
    assert await snapshot(database, run.run_id) == before


async def test_a_repeat_changes_nothing(runs: RunStore, calls: CallStore, database: Database) -> None:
    """The answer of a commit may be lost, and the owner repeats it."""
    run, fence = await running(runs)
    sent = model_call(run.run_id, view={"cut": [1]}, model="m\0")
    writes: list[Callable[[], Awaitable[Any]]] = [
        lambda: calls.send(fence, sent),
        lambda: calls.settle(fence, answered(sent), proposed(run.run_id, 1, 1)),
        lambda: ApprovalStore(database).ask(fence, [question(run.run_id)]),
    ]
    for write in writes:
        await write()
        before = await snapshot(database, run.run_id)
        await write()
        assert await snapshot(database, run.run_id) == before


async def test_what_looks_like_a_repeat_but_is_not_is_refused(
    runs: RunStore, calls: CallStore, database: Database
) -> None:
    run, fence = await running(runs)
    sent = model_call(run.run_id)
    await calls.send(fence, sent)
    before = await snapshot(database, run.run_id)
    with pytest.raises(ValueError, match="as another one"):
        await calls.send(fence, replace(sent, request_hash="other"))
    with pytest.raises(ValueError, match="never sent"):
        await calls.settle(fence, answered(model_call(run.run_id, 2)))
    with pytest.raises(ValueError, match="is sent"):
        await calls.settle(fence, sent)
    with pytest.raises(ValueError, match="another attempt"):
        await calls.send(fence, replace(sent, n=2, attempt=2))
    with pytest.raises(ValueError, match="belongs to"):
        await ApprovalStore(database).ask(fence, [question("other")])
    assert await snapshot(database, run.run_id) == before
    await calls.settle(fence, answered(sent))
    with pytest.raises(ValueError, match="as another one, answered"):
        await calls.settle(fence, answered(sent, reply=b"{}"))


async def test_an_earlier_owner_writes_nothing(runs: RunStore, calls: CallStore, database: Database) -> None:
    """Taken over, or ended: no call, no reply, no step, no question of the old attempt lands."""
    run, fence = await running(runs)
    sent, asking = model_call(run.run_id), ApprovalStore(database)
    await calls.send(fence, sent)
    seen = await runs.get(run.run_id)
    assert seen
    await runs.take_over(seen, "w2", NOW + 20)
    before = await snapshot(database, run.run_id)
    unknown = Fence("unknown", 1, "w1")
    for old in (fence, Fence(run.run_id, 2, "w1"), Fence(run.run_id, 1, "w2"), unknown):
        mine = replace(sent, run_id=old.run_id, attempt=old.attempt)
        writes: list[Awaitable[Any]] = [
            calls.send(old, replace(mine, n=2)),
            calls.settle(old, answered(mine), proposed(old.run_id, 1, 1)),
            calls.lose(old, NOW),
            asking.ask(old, [question(old.run_id)]),
        ]
        for write in writes:
            with pytest.raises(LostOwnership):
                await write
    assert await snapshot(database, run.run_id) == before
    now = Fence(run.run_id, 2, "w2")
    await runs.commit(now, 2, ended(run.run_id, 3))
    with pytest.raises(LostOwnership):
        await calls.send(now, model_call(run.run_id, 2, attempt=2))


async def test_what_an_earlier_attempt_left_is_lost_and_stays_spent(runs: RunStore, calls: CallStore) -> None:
    """It may be billed. What was answered is never lost, nor is what this attempt has sent itself."""
    run, fence = await running(runs)
    for n in (1, 2, 3):
        await calls.send(fence, model_call(run.run_id, n))
    await calls.settle(fence, answered(model_call(run.run_id, 1)))
    assert await calls.lose(fence, NOW) == []
    seen = await runs.get(run.run_id)
    assert seen
    await runs.take_over(seen, "w2", NOW + 20)
    now = Fence(run.run_id, 2, "w2")
    await calls.send(now, model_call(run.run_id, 4, attempt=2))
    assert await calls.lose(now, NOW + 21) == [2, 3]
    assert await calls.lose(now, NOW + 22) == []
    found = await calls.of_run(run.run_id)
    assert [call.status for call in found] == [CallStatus.ANSWERED, *[CallStatus.LOST] * 2, CallStatus.SENT]
    assert [call.ended_at for call in found[1:]] == [NOW + 21, NOW + 21, None]
    assert await spent(runs, run.run_id) == (37 + 300, 20 + 150)


async def test_messages_are_numbered_and_kept_once(
    runs: RunStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many at once get a number each; a key that is repeated makes one; an ended run takes none."""
    run, fence = await running(runs)
    box = InboxStore(database)
    made = await asyncio.gather(*(box.add(message(run.run_id, f"m{n}")) for n in range(8)))
    assert sorted(each.message.k for each in made) == list(range(1, 9))
    keyed = message(run.run_id, "nul \0", idempotency_key="k")
    first, again = await asyncio.gather(box.add(keyed), box.add(replace(keyed, created_at=NOW + 5)))
    assert (first.message.k, again.message.k) == (9, 9)
    with pytest.raises(Conflict) as reused:
        await box.add(replace(keyed, content="other"))
    assert reused.value.code == "idempotency_key_reused"
    assert [each.k for each in await box.after(run.run_id, 7)] == [8, 9]
    monkeypatch.setattr(inbox_store, "MOST_MESSAGES", 9)
    with pytest.raises(Conflict) as full:
        await box.add(message(run.run_id))
    await runs.commit(fence, 2, ended(run.run_id, 3))
    with pytest.raises(Conflict) as late:
        await box.add(message(run.run_id))
    assert (full.value.code, late.value.code) == ("inbox_full", "finished")
    assert (await box.add(keyed)).message.k == 9
    with pytest.raises(NotFound):
        await box.add(message("unknown"))


async def test_an_approval_is_decided_once_in_time_and_for_these_arguments(
    runs: RunStore, database: Database
) -> None:
    run, fence = await running(runs)
    asking = ApprovalStore(database)
    asked = question(run.run_id, expires_at=NOW + 10)
    others = [question(run.run_id, f"c1-{k}", expires_at=NOW + 10) for k in (1, 2)]
    await asking.ask(fence, [asked, *others])
    with pytest.raises(Conflict) as changed:
        await asking.decide(replace(asked, args_sha256="b"), Decision.APPROVED, NOW, by="ann")
    with pytest.raises(Conflict) as late:
        await asking.decide(others[0], Decision.APPROVED, NOW + 10, by="ann")
    expired = await asking.decide(others[0], Decision.EXPIRED, NOW + 10)
    choices = (Decision.APPROVED, Decision.DENIED)
    tries = (asking.decide(asked, choice, NOW + 9, by=choice.value) for choice in choices)
    results = await asyncio.gather(*tries, return_exceptions=True)
    [kept] = [each.approval for each in results if isinstance(each, Decided)]
    [twice] = [each for each in results if isinstance(each, Conflict)]
    assert [error.code for error in (changed.value, late.value, twice)] == [
        *("args_changed", "expired", "decided")
    ]
    assert (kept.decided_at, kept.by) == (NOW + 9, kept.decision)
    assert await asking.of_run(run.run_id) == [kept, expired.approval, others[1]]
    with pytest.raises(NotFound):
        await asking.decide(question(run.run_id, "c9-9"), Decision.DENIED, NOW)


async def test_a_run_that_is_deleted_takes_its_rows_along(
    runs: RunStore, calls: CallStore, database: Database
) -> None:
    run, fence = await running(runs)
    await calls.send(fence, model_call(run.run_id))
    await ApprovalStore(database).ask(fence, [question(run.run_id)])
    await InboxStore(database).add(message(run.run_id))
    gone = text("DELETE FROM runs WHERE run_id = :id")
    await database.write(lambda connection: connection.execute(gone, {"id": run.run_id}))
    *_, of_calls, of_inbox, of_approvals = await snapshot(database, run.run_id)
    assert of_calls == of_inbox == of_approvals == ()


async def test_a_definition_keeps_what_was_asked_of_the_agent(runs: RunStore) -> None:
    """Whole in the run, and left out of lists, for instructions may be long."""
    asked = {"model": "some", "instructions": "x" * 1000}
    created = await runs.create(new_run(agent=asked), NOW)
    run = await runs.get(created.run.run_id)
    [listed], _ = await runs.page(user_id="ann")
    assert run
    assert (run.agent, listed.agent, listed.spec) == (asked, {}, {})
