"""Schedules: what run to make, and when next. Firing one is a single transaction.

The tick that was seen is the condition of the UPDATE that moves on to the next one, and the run
is inserted with it, so that however many workers look at a due schedule, a tick makes one run.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from app.core.errors import Conflict
from app.core.models import DEFINITION_FIELDS, Priority, Run, RunKind
from app.core.paging import PageCursor, page
from app.db import run_create
from app.db.engine import Database
from app.db.row_codec import RowCodec, clean, from_json, to_json
from app.db.run_create import RunDraft
from app.db.tables import schedules

MOST_PER_USER = 1000
BACKLOG_FULL = "skipped: so many of your runs wait or are held already (USER_BACKLOG_MAX)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule as its row has it. `run`: the `RunDefinition` of its runs; times in microseconds.

    `next_at` is None once the expression names no further time. `last_error` says why the last
    tick made no run.
    """

    schedule_id: str
    user_id: str
    cron: str
    timezone: str
    run: dict[str, Any]
    created_at: int
    next_at: int | None
    last_at: int | None = None
    last_run_id: str | None = None
    last_error: str | None = None

    def new_run(self) -> RunDraft:
        """Return the run of the tick `next_at`: the same one, by id and key, however often it is made."""
        run_id = str(uuid.uuid5(uuid.UUID(self.schedule_id), str(self.next_at)))
        known = {name: value for name, value in self.run.items() if name in DEFINITION_FIELDS}
        kind, priority = RunKind(known.pop("kind")), Priority(known.pop("priority"))
        return RunDraft(
            run_id=run_id,
            user_id=self.user_id,
            start=True,
            idempotency_key=f"schedule:{self.schedule_id}:{self.next_at}",
            request_hash=self.schedule_id,
            kind=kind,
            priority=priority,
            **known,
        )


_ROW = RowCodec(Schedule, schedules)


class ScheduleStore:
    """Schedules in the database. Every call may raise `StorageError`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(self, schedule: Schedule) -> Schedule:
        """Keep a schedule, and return it; one whose id is there already is left unchanged.

        Raises:
            Conflict: its user has too many, or the id's schedule is another one.
        """
        kept = await self._db.write(lambda connection: _create(connection, schedule))
        if _asked_for(kept) != _asked_for(schedule):
            raise Conflict(run_create.KEY_REUSED, code="idempotency_key_reused")
        return kept

    async def page(
        self, *, user_id: str | None, limit: int, cursor: str | None = None
    ) -> tuple[list[Schedule], str | None]:
        """Return a page, newest first, and the cursor of the next page. `user_id` None: everybody's."""
        key = schedules.c
        query = select(*_ROW.columns).order_by(key.created_at.desc(), key.schedule_id.desc())
        if user_id is not None:
            query = query.where(key.user_id == user_id)
        if (before := PageCursor.parse(cursor)) is not None:
            query = query.where(tuple_(key.created_at, key.schedule_id) < tuple_(*before))
        found = await self._select(query.limit(limit + 1))
        return page(found, limit, lambda schedule: PageCursor(schedule.created_at, schedule.schedule_id))

    async def get(self, schedule_id: str, user_id: str | None) -> Schedule | None:
        """Return a schedule. `user_id` None: anybody's."""
        query = select(*_ROW.columns).where(schedules.c.schedule_id == schedule_id)
        if user_id is not None:
            query = query.where(schedules.c.user_id == user_id)
        found = await self._select(query)
        return found[0] if found else None

    async def delete(self, schedule_id: str, user_id: str | None) -> bool:
        """Forget a schedule; whether there was one. `user_id` None: anybody's."""
        statement = delete(schedules).where(schedules.c.schedule_id == schedule_id)
        if user_id is not None:
            statement = statement.where(schedules.c.user_id == user_id)
        return await self._db.write_one(lambda connection: connection.execute(statement).rowcount) > 0

    async def due(self, now: int, limit: int) -> list[Schedule]:
        """Return the schedules whose time has come, the longest due first."""
        query = select(*_ROW.columns).where(schedules.c.next_at <= now).order_by(schedules.c.next_at)
        return await self._select(query.limit(limit))

    async def fire(self, seen: Schedule, next_at: int | None, now: int, *, backlog_max: int) -> Run | None:
        """Make the run of the tick that was seen, and move on to `next_at`.

        None: another process was faster, the schedule is gone, or its user's backlog is full
        (`last_error` has it).
        """
        return await self._db.write(lambda connection: _fire(connection, seen, next_at, now, backlog_max))

    async def postpone(self, seen: Schedule, next_at: int, error: str) -> None:
        """Look at a schedule again at `next_at`, for it could not be understood."""
        values = {"next_at": next_at, "last_error": clean(error)}
        await self._db.write(lambda connection: _move_on(connection, seen, values))

    async def _select(self, query: Any) -> list[Schedule]:
        rows = await self._db.read_one(lambda connection: connection.execute(query).all())
        return [_ROW.read(row) for row in rows]


def _asked_for(schedule: Schedule) -> tuple[Any, ...]:
    """Return what its maker said; a field that a later release added, and that was not given, is none."""
    given = {name: value for name, value in schedule.run.items() if value is not None}
    return schedule.user_id, schedule.cron, schedule.timezone, from_json(to_json(given), {}, "run")


def _create(connection: Connection, schedule: Schedule) -> Schedule:
    there = select(*_ROW.columns).where(schedules.c.schedule_id == schedule.schedule_id)
    earlier = connection.execute(there).first()
    if earlier is not None:
        return _ROW.read(earlier)
    mine = select(func.count()).where(schedules.c.user_id == schedule.user_id)
    if connection.execute(mine).scalar_one() >= MOST_PER_USER:
        raise Conflict(
            f"You have {MOST_PER_USER} schedules already: delete one first.", code="too_many_schedules"
        )
    values = _ROW.write(schedule)
    connection.execute(_inserting(connection)(schedules).values(values).on_conflict_do_nothing())
    return _ROW.read(connection.execute(there).one())  # of two at once with one id, the first one's


def _inserting(connection: Connection) -> Any:
    return sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert


def _fire(
    connection: Connection, seen: Schedule, next_at: int | None, now: int, backlog_max: int
) -> Run | None:
    new = seen.new_run()
    values: dict[str, Any] = {"next_at": next_at, "last_at": seen.next_at}
    if run_create.backlog(connection, seen.user_id, backlog_max) >= backlog_max:
        _move_on(connection, seen, values | {"last_error": BACKLOG_FULL})
        return None
    if not _move_on(connection, seen, values | {"last_run_id": new.run_id, "last_error": None}):
        return None
    created = run_create.create_within(connection, new, now)
    return created.run if created is not None else None


def _move_on(connection: Connection, seen: Schedule, values: dict[str, Any]) -> bool:
    row = (schedules.c.schedule_id == seen.schedule_id) & (schedules.c.next_at == seen.next_at)
    return connection.execute(update(schedules).where(row).values(values)).rowcount > 0
