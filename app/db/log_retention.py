"""The log of a run that has ended: packed into chunks, and deleted when it is old.

Each step is one small transaction that leaves a log which is whole and readable, so that the
process may be killed at any point and another one may go on. Steps lock the run's row and look first,
so two at once do no harm either. A run that has not ended is never touched.

`app.db.log_store` draws where a log goes. Packing goes from the front, chunk by chunk. Expiry deletes from
the back, so that the marker shows with the first deletion, and what is in front of it still follows
on without a hole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, tuple_, update

from app.core.errors import StorageError
from app.core.events import Event, EventType
from app.core.models import RunStatus
from app.db import log_store
from app.db.engine import Database
from app.db.log_rows import CHUNK_BYTES, CHUNK_EVENTS, WHOLE_LINE, Chunk, insert_lines, pack, to_event
from app.db.log_store import EXPIRED, PACKED, is_expired, marker_data
from app.db.row_codec import word
from app.db.tables import log_chunks, log_lines, runs

_ROWS_AT_ONCE = 2000
_CHUNKS_AT_ONCE = 50

_RUN, _LINE, _CHUNK = runs.c, log_lines.c, log_chunks.c
_ENDED = (
    *(_RUN.run_id, _RUN.user_id, _RUN.ended_at, _RUN.attempt, _RUN.last_seq),
    *(_RUN.log_lines, _RUN.log_size, _RUN.log_stage),
)


@dataclass(frozen=True, slots=True)
class EndedRun:
    """The fields that upkeep needs of a run; in the order of `_ENDED`."""

    run_id: str
    user_id: str
    ended_at: int
    attempt: int
    last_seq: int
    log_lines: int
    log_size: int
    stage: str | None


class LogUpkeep:
    """Packs and expires logs. Times are microseconds."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def ended(
        self,
        stage: str | None,
        *,
        since: int,
        before: int,
        limit: int,
        after: EndedRun | None = None,
    ) -> list[EndedRun]:
        """Return runs that ended from `since` up to `before`, oldest first, from behind `after`."""
        at, run_id = (since, "") if after is None else (after.ended_at, after.run_id)
        query = (
            select(*_ENDED)
            .where(*_in_stage(stage))
            .where(tuple_(_RUN.ended_at, _RUN.run_id) > tuple_(at, run_id), _RUN.ended_at < before)
            .order_by(*_order(stage))
            .limit(limit)
        )
        rows = await self._db.read_one(lambda connection: connection.execute(query).all())
        return [EndedRun(*row) for row in rows]

    async def pack_next(self, run: EndedRun) -> bool:
        """Put the next rows into a chunk; return whether there is more to pack.

        A log that fits into one chunk stays as it is.
        """
        query = _rows_to_pack(run, CHUNK_EVENTS + 1)
        answers: Sequence[Any] = await self._db.read_one(lambda connection: connection.execute(query).all())
        packed, total = answers[0][0], answers[-1][-1]
        events = [to_event(answer[1:-1]) for answer in answers if answer[1] is not None]
        more = len(events) > CHUNK_EVENTS or (total or 0) >= CHUNK_BYTES
        if not more and not packed:
            return False
        chunk = pack(events[:CHUNK_EVENTS]) if events else None
        return await self._db.write(lambda connection: _put(connection, run, packed, chunk, more)) and more

    async def expire_next(self, run: EndedRun, now: int, *, archived: bool) -> bool:
        """Delete the last of what is left of the log; return whether there is more to delete.

        `archived`: the whole log is in the run's archive; the marker tells it.
        """
        return await self._db.write(lambda connection: _expire(connection, run, now, archived))


def _order(stage: str | None) -> tuple[ColumnElement[Any], ...]:
    """Return the order of the index by stage, or all expired runs may be read (by NULL none is in order)."""
    by_end = (_RUN.ended_at, _RUN.run_id)
    return by_end if stage is None else (_RUN.log_stage, *by_end)


def _in_stage(stage: str | None) -> tuple[ColumnElement[bool], ...]:
    """Say it so that the database does not leave the stage out of the order."""
    if stage is None:
        return (_RUN.log_stage.is_(None),)
    return _RUN.log_stage >= stage, _RUN.log_stage <= stage


def _rows_to_pack(run: EndedRun, limit: int) -> Any:
    """Ask (end of the chunks, *a row…, characters so far) for rows up to `CHUNK_BYTES` of content."""
    length = func.coalesce(func.length(_LINE.content), 0)
    packed = log_store.end_of_chunks(run.run_id)
    rows = (
        select(*WHOLE_LINE, length.label("length"))
        .where(_LINE.run_id == run.run_id, _LINE.seq < run.last_seq, _LINE.seq > packed.scalar_subquery())
        .order_by(_LINE.seq)
        .limit(limit)
        .subquery()
    )
    total = func.sum(rows.c.length).over(order_by=rows.c.seq).label("total")
    summed = select(*rows.c[:-1], total, (total - rows.c.length).label("before")).subquery()
    page = select(*summed.c[:-1]).where(summed.c.before < CHUNK_BYTES).subquery()
    return log_store.beside_end(packed, page).order_by(page.c.seq)


def _put(connection: Connection, run: EndedRun, packed: int, chunk: Chunk | None, more: bool) -> bool:
    """Put `chunk` in the place of its rows; False when another process was faster."""
    if not _locked(connection, run) or _end_of_chunks(connection, run) != packed:
        return False
    if chunk is not None:
        top = chunk.summary.last_seq
        taken = _delete_rows(connection, run, _LINE.seq > packed, _LINE.seq <= top)
        if taken != chunk.summary.events:
            raise StorageError(f"{run.run_id}: {taken} rows where {chunk.summary.events} were read")
        connection.execute(insert(log_chunks), chunk.values())
        _delete_rows(connection, run, _LINE.seq == packed)
        insert_lines(connection, [_marker(run, top, run.ended_at, PACKED)])
    if not more:
        _set_stage(connection, run, PACKED)
    return True


def _expire(connection: Connection, run: EndedRun, now: int, archived: bool) -> bool:
    if not _locked(connection, run):
        return False
    packed, top = _end_of_chunks(connection, run), _highest_row(connection, run)
    last = max(packed, top)
    if last:
        _put_marker(connection, run, last, now, archived)
        if _delete_last_rows(connection, run, packed, last) == _ROWS_AT_ONCE:
            return True
    if packed and _delete_last_chunks(connection, run, last) == _CHUNKS_AT_ONCE:
        return True
    _set_stage(connection, run, EXPIRED, **({} if archived else {"truncated": True}))
    return False


def _put_marker(connection: Connection, run: EndedRun, last: int, now: int, archived: bool) -> None:
    """Put the marker in the place of row `last`, unless it is there from a step before."""
    there = select(*WHOLE_LINE).where(_LINE.run_id == run.run_id, _LINE.seq == last)
    row = connection.execute(there).first()
    if row is None or not is_expired(to_event(row)):
        _delete_rows(connection, run, _LINE.seq == last)
        insert_lines(connection, [_marker(run, last, now, EXPIRED, archived=archived)])


def _delete_last_rows(connection: Connection, run: EndedRun, packed: int, last: int) -> int:
    """Delete the highest rows between the chunks and the marker."""
    old = (_LINE.run_id == run.run_id, _LINE.seq > packed, _LINE.seq < last)
    key = (_LINE.run_id, _LINE.seq)  # compared as one, in whose order only the key's index reads
    inside = (tuple_(*key) > tuple_(run.run_id, packed), tuple_(*key) < tuple_(run.run_id, last))
    highest = select(_LINE.seq).where(*inside).order_by(*(column.desc() for column in key))
    first = select(func.min(highest.limit(_ROWS_AT_ONCE).subquery().c.seq)).scalar_subquery()
    return connection.execute(delete(log_lines).where(*old, _LINE.seq >= first)).rowcount


def _delete_last_chunks(connection: Connection, run: EndedRun, last: int) -> int:
    """Delete the highest chunks, and the marker of packing if it is among them."""
    mine = _CHUNK.run_id == run.run_id
    highest = select(_CHUNK.last_seq).where(mine).order_by(_CHUNK.last_seq.desc()).limit(_CHUNKS_AT_ONCE)
    first = select(func.min(highest.subquery().c.last_seq)).scalar_subquery()
    _delete_rows(connection, run, _LINE.seq < last)
    return connection.execute(delete(log_chunks).where(mine, _CHUNK.last_seq >= first)).rowcount


def _marker(run: EndedRun, top: int, ts: int, reason: str, *, archived: bool = False) -> Event:
    lines, size = run.log_lines, run.log_size
    data = marker_data(top, lines, size, reason, archived=archived)
    what = "are packed: a newer release shows them" if reason == PACKED else "are deleted: the run is old"
    text = f"… {lines} lines ({size} bytes) {what} …"
    return Event(top, EventType.TRUNCATED, ts, run.run_id, run.attempt, content=text, data=data)


def _locked(connection: Connection, run: EndedRun) -> bool:
    """Lock the run's row; whether it has ended and its log is not yet where it is going."""
    query = select(_RUN.status, _RUN.log_stage).where(_RUN.run_id == run.run_id).with_for_update()
    row = connection.execute(query).first()
    return row is not None and word(RunStatus, row.status).terminal and row.log_stage == run.stage


def _end_of_chunks(connection: Connection, run: EndedRun) -> int:
    return connection.execute(log_store.end_of_chunks(run.run_id)).scalar_one()


def _highest_row(connection: Connection, run: EndedRun) -> int:
    query = select(func.coalesce(func.max(_LINE.seq), 0))
    return connection.execute(query.where(_LINE.run_id == run.run_id, _LINE.seq < run.last_seq)).scalar_one()


def _delete_rows(connection: Connection, run: EndedRun, *which: ColumnElement[bool]) -> int:
    return connection.execute(delete(log_lines).where(_LINE.run_id == run.run_id, *which)).rowcount


def _set_stage(connection: Connection, run: EndedRun, stage: str, **values: Any) -> None:
    connection.execute(update(runs).where(_RUN.run_id == run.run_id).values(log_stage=stage, **values))
