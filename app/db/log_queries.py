"""The questions that `LogStore` asks; each is one statement, and so looks at one state of the log.

A packed run has its first events in chunks and the rest in rows. One rule tells where an event
counts: **a row counts only beyond the last chunk**. So a statement that asks for the end of the
chunks and for rows can neither miss nor double an event, whenever the janitor commits. Each answer
comes beside that end, in a left join, so that there is an answer also where nothing was found.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, Subquery, collate, func, or_, select, true

from app.db.log_rows import WHOLE_LINE
from app.db.tables import log_chunks, log_lines
from app.log_filter import LogFilter, folded
from app.models import NEVER_FILTERED, EventType

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
    """Ask for the last rows, whole, the last one first: with a run's end stands the marker of its expiry."""
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
