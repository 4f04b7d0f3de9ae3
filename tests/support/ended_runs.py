"""Ended runs with logs of any content, for tests of how logs are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from app.core.events import Event, EventType
from app.core.log_filter import LogFilter
from app.core.models import Run
from app.db.engine import Database
from app.db.log_retention import EndedRun, LogUpkeep
from app.db.log_store import LogStore
from app.db.run_store import Batch, RunStore
from support.run_rows import NOW, ended, line, running
from tailrun.process.lines import Level, Stream

LATER = NOW + 10**12


async def ended_run(database: Database, events: Sequence[Event], **fields: Any) -> Run:
    """Make a run, and let it end after `events`, whose run id is put right."""
    store = RunStore(database)
    run, fence = await running(store, **fields)
    mine = [_of(event, run.run_id) for event in events]
    top = run.last_seq
    for at in range(0, len(mine), 2000):
        batch = mine[at : at + 2000]
        await store.commit(fence, top, Batch(events=batch))
        top = batch[-1].seq
    await store.commit(fence, top, ended(run.run_id, top + 1))
    after = await store.get(run.run_id)
    assert after is not None
    return after


def _of(event: Event, run_id: str) -> Event:
    return Event(
        event.seq,
        event.type,
        event.ts,
        run_id,
        event.attempt,
        event.level,
        event.stream,
        event.step,
        event.content,
        event.data,
    )


def plain_lines(count: int) -> list[Event]:
    """The events 3 to count + 2, of every level and stream."""
    levels, streams = list(Level), list(Stream)
    return [
        line("", seq, f"Line {seq}", level=levels[seq % 4], stream=streams[seq % 3])
        for seq in range(3, count + 3)
    ]


async def to_keep(upkeep: LogUpkeep, run: Run, stage: str | None = None) -> EndedRun:
    found = await upkeep.ended(stage, since=0, before=LATER, limit=1000)
    return next(item for item in found if item.run_id == run.run_id)


async def pack_all(upkeep: LogUpkeep, run: Run) -> None:
    kept = await to_keep(upkeep, run)
    while await upkeep.pack_next(kept):
        pass


async def expire_all(upkeep: LogUpkeep, run: Run, stage: str | None, *, archived: bool = False) -> None:
    kept = await to_keep(upkeep, run, stage)
    while await upkeep.expire_next(kept, LATER, archived=archived):
        pass


async def ask(logs: Any, run_id: str, after: int, limit: int, **filters: Any) -> list[Event]:
    """One page of a store, a history or an archive that is asked by a dict of its parameters."""
    return await logs.page(run_id, after, limit, LogFilter(**filters))


async def read_all(logs: LogStore, run_id: str, limit: int = 1000, **filters: Any) -> list[Event]:
    """Every page, as a client reads them."""
    found: list[Event] = []
    while page := await logs.page(run_id, found[-1].seq if found else 0, limit, LogFilter(**filters)):
        found += page
    return found


# -- any log ------------------------------------------------------------------------------

TEXT = st.one_of(
    st.sampled_from(
        ["Error: 100%_done\\", "ÄÖÜ straße İı ǅ ﬀ K", "a\0b", "\x1b[31mred\x1b[0m", "", "日本 🎉", "%", "[/]"]
    ),
    st.text(max_size=30),
)


@dataclass(frozen=True, slots=True)
class Spec:
    """One event to be: its type, and by how much its seq jumps (what a range stands for)."""

    type: EventType
    level: Level | None
    stream: Stream | None
    step: str | None
    content: str | None
    data: dict[str, Any]
    jump: int


_DATA = st.one_of(
    st.just({}),
    st.sampled_from([{"cr": True}, {"split": True}, {"cr": True, "split": True}]),
    st.dictionaries(st.sampled_from(["path", "n", "note"]), st.one_of(TEXT, st.integers(-9, 2**53))),
)
_LINE = st.builds(
    Spec,
    st.just(EventType.LOG),
    st.sampled_from(Level),
    st.sampled_from(Stream),
    st.sampled_from(["s1", "s2", None]),
    TEXT,
    _DATA,
    st.just(1),
)
_OTHER = st.builds(
    Spec,
    st.sampled_from([EventType.STEP, EventType.STATUS, EventType.USAGE, EventType.ARTIFACT]),
    st.one_of(st.none(), st.sampled_from(Level)),
    st.none(),
    st.sampled_from(["s1", None]),
    st.one_of(st.none(), TEXT),
    _DATA,
    st.just(1),
)
_RANGE = st.builds(
    Spec,
    st.sampled_from([EventType.TRUNCATED, EventType.GAP]),
    *([st.none()] * 3),
    st.one_of(st.none(), TEXT),
    st.just({}),
    st.integers(1, 400),
)


def _events(pattern: list[Spec], count: int) -> list[Event]:
    events: list[Event] = []
    seq = 2
    for at in range(count):
        spec = pattern[at % len(pattern)]
        first, seq = seq + 1, seq + spec.jump
        data = spec.data if spec.jump == 1 and spec.type is not EventType.GAP else {"from": first, "to": seq}
        content = None if spec.content is None else f"{spec.content}{at if at % 7 == 0 else ''}"
        ts = NOW + (at * 7919) % 100_003
        events.append(
            Event(seq, spec.type, ts, "", 1, spec.level, spec.stream, spec.step, content, dict(data))
        )
    return events


any_log = st.builds(
    _events,
    st.lists(st.one_of(_LINE, _LINE, _LINE, _OTHER, _RANGE), min_size=1, max_size=25),
    st.integers(150, 650),
)
