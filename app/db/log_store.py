"""The questions that `LogStore` asks; each is one statement, and so looks at one state of the log.

A packed run has its first events in chunks and the rest in rows. One rule tells where an event
counts: **a row counts only beyond the last chunk**. So a statement that asks for the end of the
chunks and for rows can neither miss nor double an event, whenever the janitor commits. Each answer
comes beside that end, in a left join, so that there is an answer also where nothing was found.

How far the log of an ended run has gone, and the marker in the place of what is not in rows.

    written   rows 1 … n                                  (runs.log_stage NULL)
    packed    chunks 1 … n-1, a hidden marker, row n      ('packed')
    expired   a `truncated` marker for 1 … n-1, row n     ('expired')

Row n is the run's `end` and always stays. The marker is a `truncated` event at n-1 that begins at 1.
While the last chunk is there, a row at or before its end does not count (see `log_queries`): only a
release that knows no chunks sees the marker of a packed log.

Reading the log: pages by sequence number, filters, the last lines; whether in rows or in chunks.

A page is put together in steps, each of which is one statement and moves a cursor on: chunks while
there are any above it, then rows. The janitor may pack or delete between two steps: what follows a
cursor is the same before and after, so a page needs no transaction (see `log_queries`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Select, Subquery, collate, func, or_, select, true

from app.core.events import NEVER_FILTERED, Event, EventType
from app.core.log_filter import EVERYTHING, LogFilter, folded
from app.db.engine import Database
from app.db.log_rows import CHUNK_EVENTS, WHOLE_LINE, events_of, may_hold, to_event, unpack
from app.db.row_codec import clean_or_none
from app.db.tables import log_chunks, log_lines

_LINE, _CHUNK = log_lines.c, log_chunks.c
_ALWAYS = sorted(kind.value for kind in NEVER_FILTERED)


def rows_after(
    run_id: str, after: int, limit: int, wanted: LogFilter, dialect: str
) -> Select[*tuple[Any, ...]]:
    """Ask (end of the chunks, *a row's columns…) for rows above `after`, in order.

    There is exactly one answer, without a row, where nothing was found or chunks come first.
    """
    packed = end_of_chunks(run_id)
    page = (
        select(*WHOLE_LINE)
        .where(_LINE.run_id == run_id, _LINE.seq > after, packed.scalar_subquery() <= after)
        .where(*_line_filters(wanted, dialect))
        .order_by(_LINE.seq)
        .limit(limit)
        .subquery()
    )
    return beside_end(packed, page).order_by(page.c.seq)


def chunks_after(run_id: str, after: int, limit: int, wanted: LogFilter) -> Select[*tuple[Any, ...]]:
    """Ask (end of the chunks, last_seq, marks, format, body) for chunks that may hold what is wanted."""
    page = (
        select(_CHUNK.last_seq, _CHUNK.marks, _CHUNK.format, _CHUNK.body)
        .where(_CHUNK.run_id == run_id, _CHUNK.last_seq > after)
        .where(*_chunk_filters(wanted))
        .order_by(_CHUNK.last_seq)
        .limit(limit)
        .subquery()
    )
    return beside_end(end_of_chunks(run_id), page).order_by(page.c.last_seq)


def last_lines(run_id: str, count: int) -> Select[*tuple[Any, ...]]:
    """Ask (end of the chunks, number of lines, first seq) for the last `count` lines among the rows."""
    packed = end_of_chunks(run_id)
    lines = (
        select(_LINE.seq)
        .where(_LINE.run_id == run_id, _LINE.type == EventType.LOG.value)
        .where(_LINE.seq > packed.scalar_subquery())
        .order_by(_LINE.seq.desc())
        .limit(count)
        .subquery()
    )
    found = select(func.count().label("lines"), func.min(lines.c.seq).label("first")).subquery()
    return beside_end(packed, found)


def chunk_of_line(run_id: str, count: int) -> Select[*tuple[Any, ...]]:
    """Ask (format, body, lines from this chunk on) for the chunk of the `count`-th last packed line."""
    so_far = func.sum(_CHUNK.lines).over(order_by=_CHUNK.last_seq.desc()).label("lines")
    sums = select(_CHUNK.last_seq, so_far).where(_CHUNK.run_id == run_id).subquery()
    chunk = select(sums).where(sums.c.lines >= count).order_by(sums.c.last_seq.desc()).limit(1).subquery()
    query = select(_CHUNK.format, _CHUNK.body, chunk.c.lines)
    return query.where(_CHUNK.run_id == run_id, _CHUNK.last_seq == chunk.c.last_seq)


def last_seq(run_id: str) -> Select[*tuple[Any, ...]]:
    """Ask (end of the chunks, highest row)."""
    rows = select(func.max(_LINE.seq).label("seq")).where(_LINE.run_id == run_id).subquery()
    return beside_end(end_of_chunks(run_id), rows)


def last_rows(run_id: str, count: int) -> Select[*tuple[Any, ...]]:
    """Ask for the last rows, whole, the last one first: beside a run's end is the marker of its expiry."""
    return select(*WHOLE_LINE).where(_LINE.run_id == run_id).order_by(_LINE.seq.desc()).limit(count)


def end_of_chunks(run_id: str) -> Select[int]:
    """Ask for the end of the chunks: the last event that is in one, 0 without any."""
    return select(func.coalesce(func.max(_CHUNK.last_seq), 0).label("packed")).where(_CHUNK.run_id == run_id)


def beside_end(packed: Select[int], page: Subquery) -> Select[*tuple[Any, ...]]:
    """Put the end of the chunks in front of each row of `page`, and of nothing where it has none."""
    end = packed.subquery()
    return select(end.c.packed, page).select_from(end.outerjoin(page, true()))


def _line_filters(wanted: LogFilter, dialect: str) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.levels is not None:
        conditions.append(_LINE.level.in_([level.value for level in wanted.levels]))
    if wanted.stream is not None:
        conditions.append(_LINE.stream == wanted.stream.value)
    if wanted.q:
        # SQLite's lower() knows ASCII alone; PostgreSQL's would know what the server's locale knows.
        content = _LINE.content if dialect == "sqlite" else collate(_LINE.content, "C")
        conditions.append(func.lower(content).contains(folded(wanted.q).decode(), autoescape=True))
    return [or_(_LINE.type.in_(_ALWAYS), condition) for condition in conditions]


def _chunk_filters(wanted: LogFilter) -> list[ColumnElement[bool]]:
    return [
        or_(_CHUNK.marks, column.bitwise_and(bits) != 0)
        for column, bits in ((_CHUNK.levels, wanted.level_bits), (_CHUNK.streams, wanted.stream_bits))
        if bits
    ]


PACKED, EXPIRED = "packed", "expired"


def marker_data(to: int, lines: int, size: int, reason: str, *, archived: bool = False) -> dict[str, Any]:
    """Return what a marker says of 1 to `to`; `archived`: the lines are in the run's archive."""
    data: dict[str, Any] = {"from": 1, "to": to, "lines": lines, "bytes": size, "reason": reason}
    return data | {"archived": True} if archived else data


def is_expired(event: Event) -> bool:
    """Whether `event` is in the place of lines that expired."""
    return event.type is EventType.TRUNCATED and event.data.get("reason") == EXPIRED


def is_archived(event: Event) -> bool:
    """Whether `event` is in the place of expired lines that are in an archive."""
    return is_expired(event) and event.data.get("archived") is True


_CHUNKS_AT_ONCE = 16


class LogStore:
    """The committed events of runs. What is not committed yet is in the tail in Redis."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def page(self, run_id: str, after: int, limit: int, wanted: LogFilter = EVERYTHING) -> list[Event]:
        """Return up to `limit` events with a `seq` above `after`, in order, that pass `wanted`."""
        wanted = replace(wanted, q=clean_or_none(wanted.q))  # rows hold cleaned text
        found: list[Event] = []
        while True:
            room = limit - len(found)
            query = rows_after(run_id, after, room, wanted, self._db.dialect)
            answers = await self._ask(query)
            if answers[0][0] <= after:
                return found + [to_event(answer[1:]) for answer in answers if answer[1] is not None]
            after = await self._from_chunks(run_id, after, limit, wanted, found)
            if len(found) == limit:
                return found

    async def tail_cursor(self, run_id: str, n: int) -> int:
        """Return the `after` that yields the last `n` lines of output and what follows them; 0 if fewer."""
        if n <= 0:
            packed, row = (await self._ask(last_seq(run_id)))[0]
            return max(packed, row or 0)
        packed, lines, first = (await self._ask(last_lines(run_id, n)))[0]
        if lines == n:
            return first - 1
        return await self._packed_cursor(run_id, n - lines) if packed else 0

    async def archived(self, run_id: str) -> bool:
        """Whether lines of this log are deleted here and are in the run's archive."""
        answers = await self._ask(last_rows(run_id, 2))
        return any(is_archived(to_event(answer)) for answer in answers)

    async def _from_chunks(
        self, run_id: str, after: int, limit: int, wanted: LogFilter, found: list[Event]
    ) -> int:
        """Add to `found` what passes of the next chunks, up to `limit`; return the cursor after them."""
        plain = wanted == EVERYTHING
        at_once = min(_CHUNKS_AT_ONCE, (limit - len(found)) // CHUNK_EVENTS + 2) if plain else _CHUNKS_AT_ONCE
        answers = await self._ask(chunks_after(run_id, after, at_once, wanted))
        for _, last_seq, marks, layout, body in answers:
            if last_seq is None:
                break
            columns = unpack(run_id, layout, body)
            if marks or not wanted.q or may_hold(columns, wanted.q):
                events = [event for event in events_of(run_id, columns) if event.seq > after]
                found += wanted.select(events)[: limit - len(found)]
            after = last_seq
            if len(found) == limit:
                return after
        # Fewer than asked for: those up to the end of the chunks were all looked at.
        return after if len(answers) == at_once else max(after, answers[0][0])

    async def _packed_cursor(self, run_id: str, n: int) -> int:
        """Return the cursor before the `n`-th last line in chunks; 0 if there are fewer."""
        answers = await self._ask(chunk_of_line(run_id, n))
        for layout, body, lines_from_here in answers:
            events = events_of(run_id, unpack(run_id, layout, body))
            lines = [event.seq for event in events if event.type is EventType.LOG]
            return lines[lines_from_here - n] - 1
        return 0

    async def _ask(self, query: Select[*tuple[Any, ...]]) -> Sequence[Any]:
        return await self._db.read_one(lambda connection: connection.execute(query).all())
