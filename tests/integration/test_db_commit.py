"""What an owner writes: fenced, all or nothing, once even when repeated."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import text
from support.run_rows import NOW, ended, line, lines, running, snapshot, step

from app.core.errors import LostOwnership
from app.core.events import Event, EventType, LineBatch
from app.core.models import Fence, RunStatus, StepStatus
from app.db.engine import Database
from app.db.log_store import LogStore
from app.db.row_codec import clean_or_none
from app.db.run_store import Batch, Cut, Outcome, RunStore
from tailrun.process.lines import Level, Line, Stream


@pytest.fixture
def store(database: Database) -> RunStore:
    return RunStore(database)


def everything(run_id: str, first: int) -> Batch:
    """A batch that has every part but a cut."""
    return Batch(
        events=[*lines(run_id, first, first + 2), *ended(run_id, first + 3).events],
        steps=[step(run_id), step(run_id, "s2", StepStatus.FAILED, idx=1, exit_code=3)],
        outcome=Outcome(RunStatus.FAILED, 3, {"code": "exit_nonzero", "message": "exit 3"}),
        planner="steps",
        usage={"seconds": 1},
    )


async def test_one_commit_writes_lines_steps_usage_and_the_end(store: RunStore, database: Database) -> None:
    run, fence = await running(store)
    batch = everything(run.run_id, 3)
    await store.commit(fence, 2, batch)
    after = await store.get(run.run_id)
    assert after
    assert (after.status, after.exit_code, after.planner) == (RunStatus.FAILED, 3, "steps")
    assert after.error == {"code": "exit_nonzero", "message": "exit 3"}
    assert (after.last_seq, after.log_lines, after.log_size) == (6, 3, 18)
    assert (after.ended_at, after.worker_id) == (NOW + 6, "w1")
    assert await LogStore(database).page(run.run_id, 2, 10) == list(batch.events)
    assert await store.steps(run.run_id) == list(batch.steps)
    _, attempts, _, _, usage, *_ = await snapshot(database, run.run_id)
    assert [(row.outcome, row.ended_at) for row in attempts] == [("failed", NOW + 6)]
    assert [(row.attempt, row.data) for row in usage] == [(1, '{"seconds":1}')]


@pytest.mark.parametrize("cut", [False, True])
async def test_a_fenced_attempt_changes_nothing(store: RunStore, database: Database, cut: bool) -> None:
    """An attempt whose run was taken over writes no status, no step, no line, no usage, no cut."""
    run, fence = await running(store)
    await store.commit(fence, 2, Batch(events=lines(run.run_id, 3, 9), steps=[step(run.run_id)]))
    seen = await store.get(run.run_id)
    assert seen
    await store.take_over(seen, "w2", NOW + 20)
    before = await snapshot(database, run.run_id)
    batch = everything(run.run_id, 10)
    if cut:
        marker = Event(5, EventType.TRUNCATED, NOW, run.run_id, 1, data={"from": 3, "to": 5})
        batch = Batch(events=batch.events, steps=batch.steps, cut=Cut(marker, 3))
    for old in (fence, Fence(run.run_id, 2, "w1"), Fence(run.run_id, 1, "w2"), Fence("unknown", 1, "w1")):
        with pytest.raises(LostOwnership):
            await store.commit(old, 9, batch)
    assert await snapshot(database, run.run_id) == before


async def test_an_ended_run_takes_no_more(store: RunStore, database: Database) -> None:
    run, fence = await running(store)
    await store.commit(fence, 2, ended(run.run_id, 3))
    before = await snapshot(database, run.run_id)
    for batch in (Batch(events=[line(run.run_id, 4)]), ended(run.run_id, 4), Batch(steps=[step(run.run_id)])):
        with pytest.raises(LostOwnership):
            await store.commit(fence, 3, batch)
    assert await snapshot(database, run.run_id) == before


async def test_a_repeated_commit_succeeds_and_changes_nothing(store: RunStore, database: Database) -> None:
    """The reply of a commit may be lost: the owner repeats it and goes on."""
    run, fence = await running(store)
    requested = (await store.request_cancel(run.run_id, NOW + 1)).run.cancel_requested_at
    batches = [
        Batch(events=lines(run.run_id, 3, 5), steps=[step(run.run_id)], usage={"n": 1}),
        Batch(steps=[step(run.run_id, status=StepStatus.SUCCEEDED)]),
        ended(run.run_id, 6),
    ]
    for after, batch in zip((2, 5, 5), batches, strict=True):
        first = await store.commit(fence, after, batch)
        before = await snapshot(database, run.run_id)
        again = await store.commit(fence, after, batch)
        assert first.cancel_requested_at == again.cancel_requested_at == requested
        assert await snapshot(database, run.run_id) == before


async def test_a_repeated_give_back_succeeds_until_somebody_claims(store: RunStore) -> None:
    run, fence = await running(store)
    status = Event(3, EventType.STATUS, NOW + 3, run.run_id, 1, data={"status": "queued"})
    batch = Batch(events=[status], outcome=Outcome(RunStatus.QUEUED, counts_retry=True))
    await store.commit(fence, 2, batch)
    await store.commit(fence, 2, batch)
    (again,) = await store.claim([run.run_id], "w2", NOW + 4)
    assert again.retries == 1
    with pytest.raises(LostOwnership):
        await store.commit(fence, 2, batch)


async def test_what_looks_like_a_repeat_but_is_not_is_refused(store: RunStore, database: Database) -> None:
    """Same last line, but written without this outcome, or by another attempt."""
    run, fence = await running(store)
    await store.commit(fence, 2, Batch(events=lines(run.run_id, 3, 5)))
    with pytest.raises(LostOwnership):
        await store.commit(fence, 2, ended(run.run_id, 5))
    seen = await store.get(run.run_id)
    assert seen
    await store.take_over(seen, "w2", NOW + 9)
    await store.commit(Fence(run.run_id, 2, "w2"), 5, ended(run.run_id, 6))
    before = await snapshot(database, run.run_id)
    with pytest.raises(LostOwnership):
        await store.commit(fence, 5, ended(run.run_id, 6))
    assert await snapshot(database, run.run_id) == before


async def test_a_commit_from_the_wrong_place_is_refused(store: RunStore, database: Database) -> None:
    run, fence = await running(store)
    await store.commit(fence, 2, Batch(events=lines(run.run_id, 3, 5)))
    before = await snapshot(database, run.run_id)
    for after, first, last in ((2, 3, 4), (4, 5, 6), (6, 7, 8)):
        with pytest.raises(LostOwnership):
            await store.commit(fence, after, Batch(events=lines(run.run_id, first, last)))
    with pytest.raises(ValueError, match="does not follow"):
        await store.commit(fence, 5, Batch(events=lines(run.run_id, 5, 6)))
    assert await snapshot(database, run.run_id) == before


async def test_a_line_of_another_attempt_is_an_error(store: RunStore, database: Database) -> None:
    """Should the row's counter ever lag behind its lines, nothing is overwritten or skipped."""
    run, fence = await running(store)
    foreign = "INSERT INTO log_lines (run_id, seq, type, ts, attempt) VALUES (:run_id, 4, 'log', 1, 7)"
    await database.write(lambda connection: connection.execute(text(foreign), {"run_id": run.run_id}))
    before = await snapshot(database, run.run_id)
    batch = Batch(events=lines(run.run_id, 3, 5), steps=[step(run.run_id)])
    with pytest.raises(LostOwnership, match="another attempt"):
        await store.commit(fence, 2, batch)
    assert await snapshot(database, run.run_id) == before


async def test_a_step_record_is_replaced_by_its_later_state(store: RunStore) -> None:
    run, fence = await running(store)
    await store.commit(fence, 2, Batch(steps=[step(run.run_id, args={"command": "x"})]))
    done = step(
        run.run_id,
        status=StepStatus.FAILED,
        ended_at=NOW + 9,
        exit_code=2,
        args={"command": "x"},
        result={"files": ["a"]},
        error={"code": "exit_nonzero"},
        attempt=1,
    )
    await store.commit(fence, 2, Batch(steps=[done, step(run.run_id, "s0", idx=2)]))
    assert await store.steps(run.run_id) == [done, step(run.run_id, "s0", idx=2)]
    assert await store.steps("unknown") == []


@pytest.mark.parametrize("with_more", [False, True])
async def test_a_cut_leaves_one_marker(store: RunStore, database: Database, with_more: bool) -> None:
    """The middle goes, one `truncated` stands for it, and the counters still say all ever produced."""
    run, fence = await running(store)
    await store.commit(fence, 2, Batch(events=lines(run.run_id, 3, 20)))
    marker = Event(15, EventType.TRUNCATED, NOW, run.run_id, 1, data={"from": 6, "to": 15, "lines": 10})
    batch = Batch(
        events=lines(run.run_id, 21, 22) if with_more else (),
        steps=[step(run.run_id)] if with_more else (),
        cut=Cut(marker, 6),
    )
    for _ in range(2):
        await store.commit(fence, 20, batch)
        events = await LogStore(database).page(run.run_id, 2, 100)
        top = 22 if with_more else 20
        assert [event.seq for event in events] == [3, 4, 5, *range(15, top + 1)]
        assert events[3] == marker
        after = await store.get(run.run_id)
        assert after
        assert (after.truncated, after.last_seq, after.log_lines) == (True, top, top - 2)
    # A wider cut takes the earlier marker with it.
    wider = Event(18, EventType.TRUNCATED, NOW, run.run_id, 1, data={"from": 6, "to": 18, "lines": 13})
    await store.commit(fence, top, Batch(cut=Cut(wider, 6)))
    events = await LogStore(database).page(run.run_id, 2, 100)
    assert [event.seq for event in events] == [3, 4, 5, *range(18, top + 1)]


async def test_text_that_postgresql_refuses_is_stored_with_replacements(
    store: RunStore, database: Database
) -> None:
    """NUL and lone surrogates in a line become U+FFFD; in JSON a NUL is an escape and survives."""
    run, fence = await running(store, labels={"k": "a\x00\ud800"}, project="p\x00", user_id="ann")
    bad = line(run.run_id, 3, "a\x00b\ud83dc", step="s\x00")
    noted = Event(4, EventType.ARTIFACT, NOW, run.run_id, 1, data={"path": "x\udc00\x00"})
    record = step(run.run_id, "s\x00", args={"text": "n\x00", "deep": [{"k\ud800": "\udfff"}]})
    await store.commit(fence, 2, Batch(events=[bad, noted], steps=[record], planner="p\x00"))
    stored, artifact = await LogStore(database).page(run.run_id, 2, 10)
    assert (stored.content, stored.step) == ("a\ufffdb\ufffdc", "s\ufffd")
    assert artifact.data == {"path": "x\ufffd\x00"}
    (saved,) = await store.steps(run.run_id)
    assert (saved.step_id, saved.args) == ("s\ufffd", {"text": "n\x00", "deep": [{"k\ufffd": "\ufffd"}]})
    after = await store.get(run.run_id)
    assert after
    assert (after.labels, after.project, after.planner) == ({"k": "a\x00\ufffd"}, "p\ufffd", "p\ufffd")
    assert after.log_size == len(stored.content.encode())
    assert await store.get("no\x00thing") is None
    assert await store.page(user_id="no\x00body") == ([], None)


async def test_every_kind_of_event_comes_back_as_it_went(store: RunStore, database: Database) -> None:
    run, fence = await running(store)
    run_id = run.run_id
    events = [
        line(run_id, 3, "", level=Level.ERROR, stream=Stream.STDERR, data={"cr": True}),
        line(run_id, 4, "héllo ✓ 🎉", step=None),
        Event(5, EventType.STEP, NOW, run_id, 1, step="s1", data={"status": "running", "n": 1.5}),
        Event(6, EventType.GAP, NOW, run_id, 1, data={"from": 6, "to": 6}),
        line(run_id, 7, "x" * 1_048_576),
    ]
    await store.commit(fence, 2, Batch(events=events))
    assert await LogStore(database).page(run_id, 2, 10) == events
    after = await store.get(run_id)
    assert after
    assert (after.log_lines, after.log_size) == (3, len("héllo ✓ 🎉".encode()) + 1_048_576)


HARD_ON_DATABASES = [
    "",
    "a'b\"c\\d",
    "\t\x1b[31mred",
    "äöü 日本 \U0001f600",
    "nul \0",
    "half \ud83d",
    "\u2028",
    "null",
    "NULL,{}",
]


@pytest.mark.parametrize("more", [[], ["two\nlines"]], ids=["a line each", "one holds a line feed"])
@pytest.mark.parametrize("around", [True, False], ids=["between other events", "nothing else"])
async def test_batches_of_lines_are_stored_as_their_events(
    store: RunStore, database: Database, more: list[str], *, around: bool
) -> None:
    """Every level and pipe, with what is hard on databases."""
    run, fence = await running(store)
    texts = HARD_ON_DATABASES + more
    printed = [Line(stream, text, level) for stream in Stream for level in Level for text in texts]
    start = 3 + around
    one = LineBatch(start, NOW, run.run_id, 1, "s1", printed)
    two = LineBatch(one.seq + 1, NOW + 7, run.run_id, 1, "s1", printed)
    other = [line(run.run_id, 3), line(run.run_id, two.seq + 1)] if around else []
    await store.commit(fence, 2, Batch(events=[*other[:1], one, two, *other[1:]]))
    expected = [replace(e, content=clean_or_none(e.content)) for e in one.events() + two.events()]
    assert (await LogStore(database).page(run.run_id, start - 1, len(expected))) == expected
    after = await store.get(run.run_id)
    assert after
    size = sum(len((event.content or "").encode()) for event in expected) + len(other) * len("a line")
    last, count = two.seq + around, 2 * len(printed) + len(other)
    assert (after.last_seq, after.log_lines, after.log_size) == (last, count, size)


@pytest.mark.parametrize("text", ["", "x"])
async def test_lines_that_are_all_alike_are_all_there(store: RunStore, database: Database, text: str) -> None:
    """Also when together they are nothing but line feeds."""
    run, fence = await running(store)
    batch = LineBatch(3, NOW, run.run_id, 1, None, [Line(Stream.STDOUT, text)] * 100)
    await store.commit(fence, 2, Batch(events=[batch]))
    assert await LogStore(database).page(run.run_id, 2, 1000) == batch.events()


@pytest.mark.parametrize("count", [5, 50])
async def test_a_batch_of_lines_is_fenced(store: RunStore, database: Database, count: int) -> None:
    """It is written from the seq that the owner believes to be the last, or not at all."""
    run, fence = await running(store)
    batch = LineBatch(3, NOW, run.run_id, 1, None, [Line(Stream.STDOUT, "x")] * count)
    await store.commit(fence, 2, Batch(events=[batch]))
    before = await snapshot(database, run.run_id)
    await store.commit(fence, 2, Batch(events=[batch]))  # the reply was lost
    for old, after in ((fence, count), (Fence(run.run_id, 2, "w1"), count + 2)):
        late = LineBatch(after + 1, NOW, run.run_id, 1, None, [Line(Stream.STDOUT, "y")] * count)
        with pytest.raises(LostOwnership):
            await store.commit(old, after, Batch(events=[late]))
    assert await snapshot(database, run.run_id) == before
