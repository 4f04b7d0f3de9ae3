"""The log writer between a real Redis and real databases: order, fences, outages, backpressure."""

from __future__ import annotations

import asyncio
import functools
import itertools
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sqlalchemy.exc import OperationalError
from support.run_rows import NOW, new_run
from support.servers import RedisServer

from app.config import LogSettings
from app.core.errors import LogBroken, LostOwnership
from app.core.events import Event, EventType, LineBatch
from app.core.models import Fence, Run, RunStatus, StepRecord, StepStatus
from app.db.engine import Database
from app.db.log_store import LogStore
from app.db.log_weight import Block, blocks_of
from app.db.migrate import migrate
from app.db.run_store import Batch, Cut, Outcome, RunStore
from app.redis.clients import RedisClients
from app.redis.publisher import Publisher, Tail
from app.stream.masking import Masker
from app.stream.writer import LogWriter
from tailrun.process.lines import Level, Line, Stream

SUCCEEDED = Outcome(RunStatus.SUCCEEDED, exit_code=0)


class World:
    """A writer's surroundings, and a claimed run."""

    def __init__(self, url: str, redis_url: str) -> None:
        migrate(url)
        self.db = Database(url)
        self.runs, self.logs = RunStore(self.db), LogStore(self.db)
        self.clients = RedisClients(redis_url)
        self.publisher, self.tail = Publisher(self.clients), Tail(self.clients)
        self.cancels, self.losses = 0, 0
        self._clock = itertools.count(NOW)

    async def claim(self, worker_id: str = "w1") -> Run:
        run = (await self.runs.create(new_run(), NOW)).run
        [claimed] = await self.runs.claim([run.run_id], worker_id, NOW)
        return claimed

    async def writer(self, run: Run, **settings: Any) -> LogWriter:
        def cancelled() -> None:
            self.cancels += 1

        def lost() -> None:
            self.losses += 1

        writer = LogWriter(
            run,
            Fence(run.run_id, run.attempt, run.worker_id or ""),
            publisher=self.publisher,
            tail=self.tail,
            runs=self.runs,
            clock=lambda: next(self._clock),
            settings=LogSettings.model_construct(**settings),
            masker=Masker(["hunter22"]),
            on_cancel=cancelled,
            on_lost=lost,
        )
        await writer.open()
        return writer

    async def stored(self, run: Run) -> list[Event]:
        return await self.logs.page(run.run_id, 0, 100_000)

    async def until_stored(self, run: Run, seq: int) -> None:
        async with asyncio.timeout(60):
            while not any(event.seq == seq for event in await self.stored(run)):
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.clients.close()
        await self.db.close()


@pytest.fixture
async def world(database_url: str, redis_server: RedisServer) -> AsyncIterator[World]:
    world = World(database_url, redis_server.url)
    yield world
    await world.close()


def out(*contents: str) -> list[Line]:
    return [Line(Stream.STDOUT, content) for content in contents]


async def end(writer: LogWriter, outcome: Outcome = SUCCEEDED) -> None:
    await writer.finish(outcome, EventType.END, {"status": outcome.status, "exit_code": 0, "error": None})


async def test_every_line_gets_the_next_seq_and_the_end_comes_last(world: World) -> None:
    run = await world.claim()
    writer = await world.writer(run)
    for n in range(100):
        await writer.lines(out(f"a {n}", f"b {n}"), "s1")
    await writer.say(Level.WARNING, "careful")
    await end(writer)
    events = await world.stored(run)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    contents = [event.content for event in events if event.type is EventType.LOG]
    assert contents == [f"{x} {n}" for n in range(100) for x in "ab"] + ["careful"]
    assert events[-1].type is EventType.END
    after = await world.runs.get(run.run_id)
    assert after is not None
    assert (after.status, after.log_lines, after.last_seq) == (RunStatus.SUCCEEDED, 201, events[-1].seq)


async def test_what_watchers_get_is_what_is_stored(world: World) -> None:
    """Live events come in order and without holes, the end included."""
    run = await world.claim()
    pubsub = world.clients.pubsub_connection()
    await pubsub.subscribe(f"agent:logs:{run.run_id}")
    writer = await world.writer(run)
    for n in range(500):
        await writer.lines(out(f"line {n}"), "s1")
    await end(writer)
    live: list[Event] = []
    async with asyncio.timeout(60):
        while not live or live[-1].type is not EventType.END:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
            if message is not None:
                live += [Event.decode(raw) for raw in message["data"].split(b"\n")]
    assert live == (await world.stored(run))[-len(live) :]
    assert len(live) == 501


async def test_the_first_line_is_published_before_it_is_committed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is out while no commit has begun, or one takes its time."""
    run, commit, opened = await world.claim(), world.runs.commit, asyncio.Event()

    async def held(*args: Any, **options: Any) -> Any:
        await opened.wait()
        return await commit(*args, **options)

    monkeypatch.setattr(world.runs, "commit", held)
    writer = await world.writer(run)
    await writer.lines(out("first"), "s1")
    async with asyncio.timeout(60):
        while await world.tail.top(run.run_id) <= run.last_seq:
            await asyncio.sleep(0.001)
    assert "first" not in [event.content for event in await world.stored(run)]
    opened.set()
    await end(writer)
    assert "first" in [event.content for event in await world.stored(run)]


async def test_flush_returns_when_lines_and_steps_are_committed(world: World) -> None:
    run = await world.claim()
    writer = await world.writer(run)
    record = StepRecord(run.run_id, "s1", 0, "shell", {}, StepStatus.SUCCEEDED, 1, NOW, NOW)
    await writer.lines(out("x"), "s1")
    await writer.save_step(record)
    await writer.flush()
    assert await world.runs.steps(run.run_id) == [record]
    assert [event.content for event in await world.stored(run)][-1] == "x"
    await end(writer)


async def test_secrets_are_masked_in_lines_headings_and_remarks(world: World) -> None:
    run = await world.claim()
    writer = await world.writer(run)
    await writer.lines(out("password is hunter22"), "s1")
    await writer.say(Level.INFO, "with hunter22")
    await writer.event(EventType.STEP, content="curl -u me:hunter22")
    await end(writer)
    texts = [event.content for event in await world.stored(run) if event.content]
    assert texts == ["password is ***", "with ***", "curl -u me:***"]


async def test_secrets_are_masked_in_all_that_an_attempt_leaves(world: World) -> None:
    """Records of steps, events' fields, the run's error and its last event; what clients go by stays."""
    run = await world.claim()
    writer = await world.writer(run)
    error = {"code": "start_failed", "message": "no program hunter22", "step": "s1"}
    record = StepRecord(
        run.run_id, "s1", 0, "hunter22", {"argv": ["hunter22"]}, StepStatus.FAILED, 1, NOW, NOW, 127,
        {"out": ["hunter22"]}, error,
    )  # fmt: skip
    await writer.save_step(record)
    await writer.event(EventType.ARTIFACT, step="s1", data={"path": "a/hunter22.txt", "size": 1})
    failed = Outcome(RunStatus.FAILED, 127, error)
    await writer.finish(failed, EventType.END, {"status": failed.status, "exit_code": 127, "error": error})
    shown = {**error, "message": "no program ***"}
    after = await world.runs.get(run.run_id)
    assert after is not None
    assert after.error == shown
    [kept] = await world.runs.steps(run.run_id)
    assert (kept.args, kept.result, kept.error) == ({"argv": ["***"]}, {"out": ["***"]}, shown)
    artifact, end_event = (await world.stored(run))[-2:]
    assert artifact.data == {"path": "a/***.txt", "size": 1}
    assert end_event.data == {"status": "failed", "exit_code": 127, "error": shown}


async def test_an_older_attempt_can_write_nothing_more(world: World) -> None:
    """Neither to the database nor to the wire; it is told that it lost the run."""
    run = await world.claim("w1")
    old = await world.writer(run)
    await old.lines(out("old 1"), "s1")
    await old.flush()
    seen = await world.runs.get(run.run_id)
    assert seen is not None
    taken = await world.runs.take_over(seen, "w2", NOW)
    assert taken is not None
    new = await world.writer(taken)
    with pytest.raises(LostOwnership):  # noqa: PT012 - which of the calls notices first is open
        for _ in range(100):
            await old.lines(out("old 2"), "s1")
            await old.flush()
    assert world.losses >= 1
    await old.abandon()
    await new.lines(out("new"), "s1")
    await end(new)
    contents = [event.content for event in await world.stored(run) if event.type is EventType.LOG]
    assert contents == ["old 1", "new"]


async def test_a_successor_saves_what_only_the_tail_has(world: World) -> None:
    """Lines that watchers saw and the database lacks keep their seq; the next follows on."""
    run = await world.claim("w1")
    first = run.last_seq + 1
    lost = [Event(first + n, EventType.LOG, NOW, run.run_id, 1, content=f"seen {n}") for n in range(5)]
    raws = [event.encode() for event in lost]
    await world.publisher.append(run.run_id, 1, first, raws, keep_from=0, may_raise=True)
    seen = await world.runs.get(run.run_id)
    assert seen is not None
    taken = await world.runs.take_over(seen, "w2", NOW)
    assert taken is not None
    writer = await world.writer(taken)
    await writer.lines(out("after"), "s1")
    await end(writer)
    events = await world.stored(run)
    assert events[first - 1 : first + 4] == lost
    assert events[first + 4].content == "after"
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


async def test_a_hole_in_the_tail_becomes_a_gap(world: World) -> None:
    """What was lost with worker and Redis together is said, with its range."""
    run = await world.claim("w1")
    late = Event(run.last_seq + 4, EventType.LOG, NOW, run.run_id, 1, content="late")
    await world.publisher.append(run.run_id, 1, late.seq, [late.encode()], keep_from=0, may_raise=True)
    seen = await world.runs.get(run.run_id)
    assert seen is not None
    taken = await world.runs.take_over(seen, "w2", NOW)
    assert taken is not None
    writer = await world.writer(taken)
    await end(writer)
    gap, *_ = [event for event in await world.stored(run) if event.type is EventType.GAP]
    assert gap.data == {"from": run.last_seq + 1, "to": run.last_seq + 3}
    assert gap.seq == run.last_seq + 3


async def test_a_cancel_request_comes_back_with_a_commit(world: World) -> None:
    run = await world.claim()
    writer = await world.writer(run)
    await world.runs.request_cancel(run.run_id, NOW)
    await writer.lines(out("x"), "s1")
    await writer.flush()
    assert world.cancels == 1
    await end(writer)


async def test_a_fence_that_redis_forgot_is_put_up_again(world: World) -> None:
    """Redis came back empty: the row says that the run is still ours."""
    run = await world.claim()
    writer = await world.writer(run)
    await writer.lines(out("before"), "s1")
    await writer.flush()
    await world.clients.commands.flushall()
    await writer.lines(out("after"), "s1")
    await end(writer)
    assert await world.clients.commands.get(f"agent:fence:{run.run_id}") == b"1"
    assert world.losses == 0


@pytest.mark.parametrize("content", ["", "x" * 90, "ä" * 90], ids=["empty", "ASCII", "two bytes a character"])
async def test_a_log_over_its_limit_keeps_both_ends(world: World, content: str) -> None:
    run = await world.claim()
    writer = await world.writer(run, max_bytes=20_000)
    for n in range(100):
        await writer.lines(out(f"{n}", *[content] * 9), "s1")
        await writer.flush()
    await end(writer)
    events = await world.stored(run)
    [mark] = [event for event in events if event.type is EventType.TRUNCATED]
    contents = [event.content or "" for event in events if event.type is EventType.LOG]
    assert (contents[0], contents[-10]) == ("0", "99")
    assert mark.data["lines"] + len(contents) == 1000
    covered = {*range(mark.data["from"], mark.data["to"] + 1), *(event.seq for event in events)}
    assert covered == set(range(1, events[-1].seq + 1))
    after = await world.runs.get(run.run_id)
    assert after is not None
    assert (after.truncated, after.log_lines) == (True, 1000)
    assert mark.data["bytes"] + sum(len(text.encode()) for text in contents) == after.log_size
    assert len(contents) * 100 + after.log_size - mark.data["bytes"] <= 20_000


async def test_the_limit_is_one_for_all_attempts_of_a_run(world: World) -> None:
    """Whatever died in between: one head, one window, one marker, and what it says is still right."""
    run = await world.claim()
    for attempt in range(5):
        writer = await world.writer(run, max_bytes=20_000)
        for n in range(20):
            await writer.lines(out(*[f"{attempt} {n} ä"] * 10), "s1")
            await writer.flush()
        if attempt < 4:
            await writer.abandon()
            taken = await world.runs.take_over(run, f"w{attempt + 2}", NOW)
            assert taken is not None
            run = taken
    await end(writer)
    events = await world.stored(run)
    [mark] = [event for event in events if event.type is EventType.TRUNCATED]
    contents = [event.content or "" for event in events if event.type is EventType.LOG]
    assert (contents[0], contents[-1]) == ("0 0 ä", "4 19 ä")
    after = await world.runs.get(run.run_id)
    assert after is not None
    assert mark.data["lines"] + len(contents) == after.log_lines == 1000
    assert mark.data["bytes"] + sum(len(text.encode()) for text in contents) == after.log_size
    assert len(contents) * 100 <= 20_000


async def test_the_rows_of_a_run_weigh_what_was_counted_before_they_were_written(world: World) -> None:
    """Hard text in lines, fields and the step's name; then a cut, behind which it goes on."""
    run = await world.claim()
    texts = ["", "ascii", "ä", "\U0001f600", "back\\slash \\000", "nul \0", "half \ud83d"]
    lines = [Line(Stream.STDOUT, text, src=src) for src in ("7 ä", None) for text in texts]
    seq, fence = run.last_seq, Fence(run.run_id, 1, "w1")
    first = LineBatch(seq + 1, NOW, run.run_id, 1, "ß", lines[:7])
    second = LineBatch(first.seq + 1, NOW, run.run_id, 1, None, lines[7:])
    other = Event(second.seq + 1, EventType.ARTIFACT, NOW, run.run_id, 1, data={"path": "ä\0"})
    written = [first, second, other]
    before = (await world.runs.kept(run.run_id)).blocks
    await world.runs.commit(fence, seq, Batch(events=written))
    found = await world.runs.kept(run.run_id)
    expected = [*before, *(block for one in written for block in blocks_of(one, 10**9))]
    assert functools.reduce(Block.joined, found.blocks) == functools.reduce(Block.joined, expected)
    assert found.cut is None
    marker = Event(first.seq, EventType.TRUNCATED, NOW, run.run_id, 1, data={"from": 1, "to": first.seq})
    await world.runs.commit(fence, other.seq, Batch(cut=Cut(marker, 1)))
    found = await world.runs.kept(run.run_id)
    expected = [block for one in written[1:] for block in blocks_of(one, 10**9)]
    assert functools.reduce(Block.joined, found.blocks) == functools.reduce(Block.joined, expected)
    assert found.cut == marker.data


async def test_lines_go_to_the_database_while_redis_is_frozen(tmp_path: Path, sqlite_url: str) -> None:
    server = RedisServer(tmp_path / "redis").start()
    world = World(sqlite_url, server.url)
    run = await world.claim()
    writer = await world.writer(run)
    await writer.lines(out("one"), "s1")
    await writer.flush()
    server.freeze()
    await writer.lines(out("two"), "s1")
    await world.until_stored(run, run.last_seq + 2)
    server.thaw()
    await writer.lines(out("three"), "s1")
    await end(writer)
    contents = [event.content for event in await world.stored(run) if event.content]
    assert contents == ["one", "two", "three"]
    await world.close()
    server.stop()


async def test_a_locked_database_holds_the_writer_and_drops_nothing(
    redis_server: RedisServer, sqlite_url: str
) -> None:
    """The tail has the lines meanwhile; past the bound the writer waits, which stops the tool's pipe."""
    world = World(sqlite_url, redis_server.url)
    run = await world.claim()
    writer = await world.writer(run, buffer_bytes=50_000)
    locker = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    written = 0

    async def write() -> None:
        nonlocal written
        for n in range(1000):
            await writer.lines(out(f"{n:04} {'x' * 200}"), "s1")
            written += 1

    writing = asyncio.create_task(write())
    async with asyncio.timeout(60):
        while (
            writer._committing.queue.bytes <= 50_000
            or await world.tail.top(run.run_id) < run.last_seq + written
        ):
            await asyncio.sleep(0.01)
    held = written
    done, _ = await asyncio.wait([writing], timeout=1)
    assert not done
    assert held == written < 400, "the writer waits"
    locker.execute("ROLLBACK")
    locker.close()
    await writing
    await end(writer)
    contents = [event.content or "" for event in await world.stored(run) if event.type is EventType.LOG]
    assert [content[:4] for content in contents] == [f"{n:04}" for n in range(1000)]
    await world.close()


async def test_giving_back_leaves_the_run_queued(world: World) -> None:
    run = await world.claim()
    writer = await world.writer(run)
    await writer.finish(Outcome(RunStatus.QUEUED), EventType.STATUS, {"status": "queued"})
    after = await world.runs.get(run.run_id)
    assert after is not None
    assert (after.status, after.worker_id, after.retries) == (RunStatus.QUEUED, None, 0)


async def test_a_short_run_is_published_in_two_messages(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first event at once, the rest with its end: a run of milliseconds costs two calls to Redis."""
    run = await world.claim()
    pubsub = world.clients.pubsub_connection()
    await pubsub.subscribe(f"agent:logs:{run.run_id}")
    monkeypatch.setattr("app.stream.writer.LINGER_S", 5)
    writer = await world.writer(run)
    await writer.event(EventType.STATUS, data={"status": "running"})
    messages = [await next_message(pubsub)]
    for n in range(3):
        await writer.say(Level.INFO, f"line {n}")
    await end(writer)
    messages.append(await next_message(pubsub))
    assert [len(message.split(b"\n")) for message in messages] == [1, 4]
    assert Event.decode(messages[1].split(b"\n")[-1]).type is EventType.END


async def test_lines_do_not_wait_for_a_database_that_is_away_at_the_end(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """They go to watchers, and into the tail for whoever takes the run over; the end waits."""
    world = World(f"sqlite:///{tmp_path / 'tailrun.db'}", redis_server.url)
    run = await world.claim()
    writer = await world.writer(run)
    lock = sqlite3.connect(tmp_path / "tailrun.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    await writer.say(Level.INFO, "first")
    await writer.say(Level.INFO, "second")
    ending = asyncio.create_task(end(writer))
    async with asyncio.timeout(60):
        while await world.tail.top(run.run_id) < run.last_seq + 2:
            await asyncio.sleep(0.01)
    assert not ending.done()
    lock.execute("ROLLBACK")
    lock.close()
    await ending
    assert [event.type for event in await world.stored(run)][-3:] == ["log", "log", "end"]
    await world.close()


class Fault:
    """A store's call that raises `error` once it is told to; None: it never returns."""

    def __init__(self, error: BaseException | None) -> None:
        self.called, self.told = asyncio.Event(), asyncio.Event()
        self._error = error

    async def __call__(self, *_: object, **__: object) -> NoReturn:
        self.called.set()
        await self.told.wait()
        if self._error is not None:
            raise self._error
        await asyncio.Event().wait()
        raise AssertionError


FAULTS = {
    "a mistake": lambda: TypeError("a mistake"),
    "a statement": lambda: OperationalError("INSERT", {}, sqlite3.OperationalError("no such table")),
    "a pool": lambda: RuntimeError("cannot schedule new futures after shutdown"),
    "cancelled": asyncio.CancelledError,
}
WAITS = {
    "flush": LogWriter.flush,
    "write": lambda writer: writer.lines(out("one more"), "s1"),
    "close": end,
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("lane", ["publish", "commit"])
async def test_whatever_breaks_a_lane_is_raised_to_who_waits(
    world: World, monkeypatch: pytest.MonkeyPatch, lane: str, fault: Any, wait: Any
) -> None:
    """Not only what means that a store is away or the run lost; and the attempt is told to end."""
    published = Fault(fault() if lane == "publish" else None)
    committed = Fault(fault() if lane == "commit" else None)
    monkeypatch.setattr(world.publisher, "append", published)
    monkeypatch.setattr(world.runs, "commit", committed)
    run = await world.claim()
    writer = await world.writer(run, buffer_bytes=1000)
    writing = asyncio.create_task(writer.lines(out("x" * 2000), "s1"))
    async with asyncio.timeout(60):
        await published.called.wait()
        await committed.called.wait()
        waiting = asyncio.create_task(wait(writer))
        await asyncio.sleep(0)
        assert not writing.done()
        assert not waiting.done()
        published.told.set()
        committed.told.set()
        found = await asyncio.gather(writing, waiting, return_exceptions=True)
        assert [type(error) for error in found] == [LogBroken, LogBroken]
        for call in WAITS.values():
            with pytest.raises(LogBroken, match=run.run_id):
                await call(writer)
        await writer.abandon()
    assert world.losses == 1


async def test_who_waits_for_an_abandoned_writer_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool that was left behind, since it did not answer, must not wait without an end."""
    monkeypatch.setattr(world.runs, "commit", Fault(None))
    writer = await world.writer(await world.claim())
    await writer.say(Level.INFO, "never committed")
    waiting = asyncio.create_task(writer.flush())
    await asyncio.sleep(0)
    await writer.abandon()
    async with asyncio.timeout(60):
        with pytest.raises(LostOwnership):
            await waiting


async def test_an_end_that_is_committed_but_cannot_be_published_is_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(TypeError("a mistake"))
    fault.told.set()
    run = await world.claim()
    writer = await world.writer(run)
    monkeypatch.setattr(world.publisher, "append", fault)
    await end(writer)
    after = await world.runs.get(run.run_id)
    assert after is not None
    assert after.status is RunStatus.SUCCEEDED


async def next_message(pubsub: Any) -> bytes:
    async with asyncio.timeout(60):
        while True:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
            if message is not None:
                return message["data"]
