"""How a run comes to be: its row and its first events in one transaction, once per idempotency key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zstandard
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import NoResultFound

from app.core.errors import Conflict
from app.core.events import Event, EventType
from app.core.models import Run, RunDefinition, RunStatus
from app.db.engine import Database
from app.db.log_rows import insert_from, insert_lines, line_arrays
from app.db.row_codec import clean, clean_or_none
from app.db.run_queries import BACKLOG, RUN_ROW, owner
from app.db.tables import runs, transcripts

KEY_REUSED = "this Idempotency-Key was used for another request: use a new key"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDraft(RunDefinition):
    """A run to be made. `start`: queued at once, else held as `created`. `transcript`: what it replays."""

    run_id: str
    user_id: str
    start: bool
    retry_of: str | None = None
    planner: str | None = None
    transcript: str | None = None
    run_at: int | None = None
    idempotency_key: str | None = None
    request_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """The run, the events that came with it, and whether it is new or the key's earlier one."""

    run: Run
    events: list[Event]
    fresh: bool


_COLUMNS = (*RUN_ROW.names, "idempotency_key", "request_hash")
_INSERT = f"""INSERT INTO runs ({", ".join(_COLUMNS)}) VALUES ({", ".join(f":{name}" for name in _COLUMNS)})
 ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING RETURNING run_id"""
_INSERT_SQLITE = text(_INSERT)
_INSERT_POSTGRES = text(
    f"WITH made AS ({_INSERT}), lines_in AS ({insert_from('made')}) SELECT run_id FROM made",
)


async def create(db: Database, new: RunDraft, now: int) -> Created:
    """Insert the run; Conflict when its idempotency key was used for another request."""
    run, events = _first_state(new, now)
    write = db.write_one if new.transcript is None else db.write
    if await write(lambda connection: _insert(connection, new, run, events)):
        return Created(run, events, fresh=True)
    earlier = await db.read_one(lambda connection: _earlier(connection, new))
    return Created(earlier, [], fresh=False)


def create_within(connection: Connection, new: RunDraft, now: int) -> Created | None:
    """Insert the run within a transaction of the caller's. None: its idempotency key was used before."""
    run, events = _first_state(new, now)
    return Created(run, events, fresh=True) if _insert(connection, new, run, events) else None


def backlog(connection: Connection, user_id: str, cap: int) -> int:
    """Return how many runs of the user wait or are held, counting no further than `cap`."""
    user = clean(user_id)
    states = {"queued": RunStatus.QUEUED, "held": RunStatus.CREATED, "waiting": RunStatus.WAITING}
    values = {name: owner(user, status) for name, status in states.items()} | {"cap": cap}
    return connection.execute(BACKLOG, values).scalar_one()


async def find_earlier(db: Database, new: RunDraft) -> Created | None:
    """Return the run that the idempotency key made before, if any; Conflict as `create`."""
    try:
        return Created(await db.read_one(lambda connection: _earlier(connection, new)), [], fresh=False)
    except NoResultFound:
        return None


def _first_state(new: RunDraft, now: int) -> tuple[Run, list[Event]]:
    path = [RunStatus.CREATED, RunStatus.QUEUED] if new.start else [RunStatus.CREATED]
    events = [
        Event(seq, EventType.STATUS, now, new.run_id, 0, data={"status": status.value})
        for seq, status in enumerate(path, 1)
    ]
    run = Run(
        **new.definition(),
        run_id=new.run_id,
        user_id=new.user_id,
        status=path[-1],
        created_at=now,
        queued_at=now if new.start else None,
        next_attempt_at=new.run_at if new.start and (new.run_at or 0) > now else None,
        planner=new.planner,
        last_seq=len(events),
        retry_of=new.retry_of,
        run_at=new.run_at,
    )
    return run, events


def _insert(connection: Connection, new: RunDraft, run: Run, events: Sequence[Event]) -> bool:
    values = RUN_ROW.write(run) | {
        "idempotency_key": clean_or_none(new.idempotency_key),
        "request_hash": clean_or_none(new.request_hash),
    }
    make = _insert_sqlite if connection.dialect.name == "sqlite" else _insert_postgres
    made = make(connection, values, events)
    if made and new.transcript is not None:
        content = zstandard.compress(new.transcript.encode())
        connection.execute(insert(transcripts).values(run_id=run.run_id, content=content))
    return made


def _insert_postgres(connection: Connection, values: dict[str, Any], events: Sequence[Event]) -> bool:
    return connection.execute(_INSERT_POSTGRES, values | line_arrays(events)).first() is not None


def _insert_sqlite(connection: Connection, values: dict[str, Any], events: Sequence[Event]) -> bool:
    made = connection.execute(_INSERT_SQLITE, values).first() is not None
    if made:
        insert_lines(connection, events)
    return made


def _earlier(connection: Connection, new: RunDraft) -> Run:
    key = (runs.c.user_id == clean(new.user_id)) & (runs.c.idempotency_key == new.idempotency_key)
    *columns, request_hash = connection.execute(
        select(*RUN_ROW.columns, runs.c.request_hash).where(key)
    ).one()
    if request_hash != new.request_hash:
        raise Conflict(KEY_REUSED, code="idempotency_key_reused")
    return RUN_ROW.read(columns)
