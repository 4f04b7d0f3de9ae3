"""No statement reads more because more runs wait or have ended, also by statistics of a quieter time."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, text
from support import seeded_runs
from support.postgres_server import postgres_database
from support.run_rows import NOW, ended, lines, model_call, new_run, parked, running, step
from support.seeded_runs import Seed, run_id
from support.statement_cost import Cost, measured

from app.core.agent_records import Approval, CallStatus, Decision, InboxMessage, MessageMode
from app.core.models import Fence, RunStatus, StepStatus
from app.db.approval_store import ApprovalStore
from app.db.call_store import CallStore
from app.db.engine import Database
from app.db.inbox_store import InboxStore
from app.db.log_retention import LogUpkeep
from app.db.log_store import LogStore
from app.db.project_store import Change, ProjectStore
from app.db.run_store import Batch, RunStore
from app.db.schedule_store import Schedule, ScheduleStore
from app.db.token_store import TokenStore
from app.db.webhook_store import WebhookStore

SEED = Seed(ended=20_000, queued=8_000, running=200, held=50, lines=2)
MOST_READ = {"postgresql": 400, "sqlite": 20_000}
"""Rows, and instructions. Nothing below asks for more than 50 rows at once; a full scan of what waits or
has ended reads 8 000 rows, and takes 100 000 instructions."""
ALLOWED = {
    "GROUP BY runs.status": "counts what there is, and rests for as long as is cheap",
    "tokens.scope !=": "an operator's list, asked for by hand; what has expired is purged",
}


class Noted:
    """A store that notes which of its methods were called."""

    def __init__(self, store: Any) -> None:
        self._store = store
        public = inspect.getmembers(type(store), inspect.iscoroutinefunction)
        self.missing = {name for name, _ in public if not name.startswith("_")}

    def __getattr__(self, name: str) -> Any:
        self.missing.discard(name)
        return getattr(self._store, name)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def seeded_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Each of the two databases in turn, with a history and a backlog."""
    if request.param == "sqlite":
        file = tmp_path_factory.mktemp("seeded") / "tailrun.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), file)
        yield _seed(f"sqlite:///{file}")
        return
    base_url, template = map(request.getfixturevalue, ("postgres_base_url", "postgres_template"))
    with postgres_database(base_url, template) as url:
        yield _seed(url)


def _seed(url: str) -> str:
    async def work() -> None:
        db = Database(url)
        await seeded_runs.seed(db, SEED)
        await db.close()

    asyncio.run(work())
    return url


@pytest.fixture
async def db(seeded_url: str) -> AsyncIterator[Database]:
    db = Database(seeded_url)
    yield db
    await db.close()


def assert_cheap(db: Database, costs: list[Cost]) -> None:
    most = MOST_READ[db.dialect]
    dear = [c for c in costs if c.read > most and not any(part in c.statement for part in ALLOWED)]
    assert not dear, "\n\n".join(f"{c.read}: {c.statement}\n{c.plan}" for c in dear)


WAITING = SEED.waiting()


async def test_a_claim_reads_its_own_rows_only(db: Database) -> None:
    """As many as it was given, whatever else waits."""
    store, ids = RunStore(db), [run_id(number) for number in WAITING[:20]]
    with measured() as costs:
        claimed = await store.claim(ids, "w-new", NOW)
        again = await store.claim(ids, "w-other", NOW)
    assert sorted(run.run_id for run in claimed) == ids
    assert again == []
    assert [cost.read <= {"postgresql": 3 * 20, "sqlite": 20 * 400}[db.dialect] for cost in costs], costs
    assert_cheap(db, costs)


@pytest.mark.deep
async def test_a_backlog_is_drained_as_fast_as_an_empty_queue(database: Database) -> None:
    """Its first half at 80 % of the second half's rate at least."""
    await seeded_runs.seed(database, Seed(ended=20_000, queued=20_000))
    store, ids = RunStore(database), [run_id(number) for number in Seed(20_000, 20_000).waiting()]
    took: list[float] = []
    for at in range(0, len(ids), 2_000):
        began = time.perf_counter()
        for first in range(at, at + 2_000, 20):
            assert len(await store.claim(ids[first : first + 20], "w-new", NOW)) == 20
        took.append(time.perf_counter() - began)
    full, empty = statistics.median(took[:5]), statistics.median(took[5:])
    assert full < 1.25 * empty


async def test_the_life_of_a_run(db: Database) -> None:
    """Made, claimed, taken over, written to, retried, ended; and held, started, cancelled."""
    runs, logs, hooks = Noted(RunStore(db)), Noted(LogStore(db)), Noted(WebhookStore(db))
    with measured() as costs:
        await _live(runs, logs, hooks)
        await _look(runs)
    assert (runs.missing, logs.missing, hooks.missing) == (set(), set(), set())
    assert_cheap(db, costs)


async def _live(runs: Any, logs: Any, hooks: Any) -> None:
    new = new_run(idempotency_key="k1", request_hash="h", webhook_url="https://example.org")
    await runs.create(new, NOW)
    assert await runs.earlier(new)
    unseen = new_run(user_id="user-3", idempotency_key="k2", request_hash="h")
    assert await runs.earlier(unseen) is None
    [claimed] = await runs.claim([new.run_id], "w-1", NOW)
    run = await runs.take_over(claimed, "w-2", NOW)
    fence = Fence(new.run_id, run.attempt, "w-2")
    record = step(new.run_id, status=StepStatus.SUCCEEDED)
    await runs.commit(fence, 2, Batch(events=lines(new.run_id, 3, 40), steps=[record], usage={"a": 1}))
    await runs.commit(fence, 40, Batch(events=lines(new.run_id, 41, 50)))
    await runs.note_waiting(new.run_id, "waiting", NOW)  # it runs: nothing is written
    await runs.waits(new.run_id, {"worker_lost"})
    for ask in (runs.get, runs.owner, runs.steps, runs.kept):
        assert await ask(new.run_id)
    for ask in (runs.owners, runs.heads, runs.users, runs.many):
        assert await ask([new.run_id])
    await runs.last_source(new.run_id, "s1")
    await runs.commit(fence, 50, ended(new.run_id, 51))
    assert await logs.page(new.run_id, 0, 50)
    assert await logs.tail_cursor(new.run_id, 5)
    assert not await logs.archived(new.run_id)
    await _deliver(hooks, new.run_id)
    await runs.overdue(NOW, 50)
    await runs.stop_waiting(new.run_id, NOW)
    held = new_run(start=False)
    await runs.create(held, NOW)
    await runs.start(held.run_id, NOW)
    await runs.request_cancel(held.run_id, NOW)
    lost = await runs.get(run_id(SEED.numbers()["running"][5]))
    assert await runs.take_over(lost, "w-2", NOW)


async def test_the_rows_of_an_agent(db: Database) -> None:
    """Calls of the model, with what came of them, messages and approvals."""
    calls, messages, questions = Noted(CallStore(db)), Noted(InboxStore(db)), Noted(ApprovalStore(db))
    runs, number = RunStore(db), SEED.numbers()["running"][7]
    run, fence = run_id(number), Fence(run_id(number), 1, f"w-{number % seeded_runs.WORKERS}")
    user = (await runs.users([run]))[run]
    with measured() as costs:
        assert await calls.lose(fence, NOW) == []
        sent = model_call(run)
        await calls.send(fence, sent)
        step_row = step(run, "c1-0", StepStatus.PROPOSED, call=1)
        await calls.settle(fence, replace(sent, status=CallStatus.ANSWERED, reply=b"{}"), [step_row])
        assert await calls.of_run(run) == await calls.page(run, 0, 10)
        assert len(await calls.steps_of(run, 1, 1)) == 1
        assert await calls.transcript(run) is None
        said = InboxMessage(run_id=run, content="x", mode=MessageMode.NEXT, by="ann", created_at=NOW)
        for key in ("k", None):
            assert await messages.add(replace(said, idempotency_key=key))
        assert await messages.after(run, 0)
        asked = Approval(run_id=run, step_id="c1-0", args_sha256="a", rule="auto", asked_at=NOW)
        await questions.ask(fence, [asked])
        top = (await runs.heads([run]))[run][0]
        await runs.commit(fence, top, parked(run, top + 1))
        for whose in (user, None):
            assert [each.approval for each in await questions.open_of(whose, 10)] == [asked]
        assert await runs.overdue(NOW * 2, 10) == [run]
        assert (await questions.decide(asked, Decision.APPROVED, NOW)).changed.events
        assert await questions.of_run(run)
        assert await questions.open_of(user, 10) == await runs.overdue(NOW * 2, 10) == []
        assert (await runs.stop_waiting(run, NOW * 2)).events == []
    assert (calls.missing, messages.missing, questions.missing) == (set(), set(), set())
    assert_cheap(db, costs)


async def _deliver(hooks: Any, run_id: str) -> None:
    [due] = await hooks.due(NOW * 2, 10)
    assert due.run_id == run_id
    assert await hooks.take(due, NOW * 3)
    tried = {"at": NOW, "status": 200, "error": None, "ms": 1}
    assert await hooks.settle(due, NOW * 3, tried, next_at=None, delivered=True)
    assert await hooks.get(run_id)


async def _look(runs: Any) -> None:
    """Every list with every filter and its second page, and what metrics and the leader ask."""
    for user in (None, "ann", "user-1", "user-3", "nobody"):
        for status in (None, *RunStatus):
            found, cursor = await runs.page(user_id=user, status=status, limit=20)
            assert all(run.status is status for run in found if status)
            if cursor is not None:
                older, _ = await runs.page(user_id=user, status=status, limit=20, cursor=cursor)
                assert older[0].created_at <= found[-1].created_at
    for user in ("ann", "user-1", "user-3", "nobody"):
        await runs.backlog(user, 50)
    for status in (RunStatus.QUEUED, RunStatus.RUNNING):
        assert await runs.open_runs(status, 50, await _middle(runs, status))
    assert len(await runs.running_on("w-3")) == SEED.running // seeded_runs.WORKERS
    assert await runs.oldest_queued_at() == seeded_runs.made_at(WAITING[20])
    assert await runs.counts()
    assert await runs.ended_since(seeded_runs.made_at(SEED.numbers()["ended"][-40])) >= 40


async def _middle(runs: Any, status: RunStatus) -> str:
    return (await runs.open_runs(status, 50))[-1].run_id


async def test_a_log_batch_writes_to_no_index(database: Database) -> None:
    """PostgreSQL leaves them alone while no changed column stands in one, nor in a condition of one."""
    if database.dialect == "sqlite":
        pytest.skip("SQLite writes to the indexes of changed columns only")
    store = RunStore(database)
    run, fence = await running(store)
    for at in range(6):
        await store.commit(fence, 2 + at, Batch(events=lines(run.run_id, 3 + at, 3 + at)))
    hot = text(
        "SELECT n_tup_upd - n_tup_hot_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'runs'"
    )

    def counted(connection: Connection) -> tuple[int, int]:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        return tuple(connection.execute(hot).one())

    async def all_told() -> bool:
        return sum(await database.read(counted)) == 7

    await database.close()  # connections tell at their end, if not before
    async with asyncio.timeout(60):
        while not await all_told():
            await asyncio.sleep(0.05)
    assert await database.read(counted) == (1, 6), "the claim, and nothing else"


async def test_schedules_tokens_and_projects(db: Database) -> None:
    schedules, tokens = Noted(ScheduleStore(db)), Noted(TokenStore(db))
    projects = Noted(ProjectStore(db, None))
    with measured() as costs:
        await _schedule(schedules)
        secret, token = await tokens.create("ann", "user", "laptop", NOW)
        await tokens.create("ann", "stream", "", NOW, expires_at=NOW + 1)
        assert await tokens.find(secret, NOW)
        assert await tokens.lasting()
        assert await tokens.valid([token.token_id], NOW) == {token.token_id}
        assert await tokens.revoke(token.token_id, NOW)
        assert await tokens.purge_expired(NOW + 2) == 1
        await _project(projects)
    assert (schedules.missing, tokens.missing, projects.missing) == (set(), set(), set())
    assert_cheap(db, costs)


async def _schedule(schedules: Any) -> None:
    spec = {"kind": "prompt", "spec": {"prompt": "x"}, "max_attempts": 1, "timeout_s": 1.0, "labels": {}}
    spec |= {"priority": "normal"}
    made = Schedule(
        schedule_id=str(uuid.uuid4()),
        user_id="user-1",
        cron="* * * * *",
        timezone="UTC",
        run=spec,
        created_at=NOW,
        next_at=NOW,
    )
    await schedules.create(made)
    assert await schedules.page(user_id="user-1", limit=10)
    assert await schedules.get(made.schedule_id, "user-1")
    [due] = await schedules.due(NOW, 10)
    await schedules.postpone(due, NOW + 1, "later")
    [due] = await schedules.due(NOW + 1, 10)
    assert await schedules.fire(due, None, NOW + 1, backlog_max=50) is None  # full: counted no further
    assert await schedules.delete(made.schedule_id, "user-1")


async def _project(projects: Any) -> None:
    await projects.put("p", Change(paths={}, env={}), NOW)
    assert await projects.exists("p")
    assert await projects.get("p")
    assert await projects.load("p")
    await projects.reseal()
    assert await projects.delete("p")


async def test_the_upkeep_of_logs(db: Database) -> None:
    """Small logs stay unpacked for ever: they are looked at once, not at each sweep."""
    upkeep = Noted(LogUpkeep(db))
    with measured() as costs:
        page = await upkeep.ended(None, since=0, before=NOW, limit=50)
        following = await upkeep.ended(None, since=0, before=NOW, limit=50, after=page[-1])
        assert following[0].ended_at >= page[-1].ended_at
        await upkeep.pack_next(page[0])
        await upkeep.expire_next(page[0], NOW, archived=False)
        assert await upkeep.ended("packed", since=0, before=NOW, limit=50) == []
    assert upkeep.missing == set()
    assert_cheap(db, costs)
