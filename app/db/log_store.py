"""Reading the log: pages by sequence number, filters, the last lines."""

from __future__ import annotations

from sqlalchemy import Select, select
from sqlalchemy.sql.elements import ColumnElement

from app.db.clean import clean
from app.db.engine import Database
from app.db.log_rows import WHOLE_LINE, to_event
from app.db.tables import log_lines
from app.models import NEVER_FILTERED, Event, EventType, Level, Stream

_LINE = log_lines.c
_ALWAYS = sorted(kind.value for kind in NEVER_FILTERED)


class LogStore:
    """The committed events of runs. What is not committed yet stands in Redis's tail."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def page(
        self,
        run_id: str,
        after: int,
        limit: int,
        *,
        level: Level | None = None,
        stream: Stream | None = None,
        q: str | None = None,
    ) -> list[Event]:
        """Return up to `limit` events with a `seq` above `after`, in order.

        `level`: at least as severe. `q`: a part of the content; ASCII letters match in either case.
        `end`, `gap` and `truncated` pass every filter; another event without a level, a stream or a
        content does not pass the filter for it.
        """
        query = select(*WHOLE_LINE).where(_LINE.run_id == run_id, _LINE.seq > after)
        if wanted := _filters(level, stream, q):
            passes: ColumnElement[bool] = _LINE.type.in_(_ALWAYS)
            for condition in wanted:
                query = query.where(passes | condition)
        query = query.order_by(_LINE.seq).limit(limit)
        rows = await self._db.read_one(lambda connection: connection.execute(query).all())
        return [to_event(row) for row in rows]

    async def tail_cursor(self, run_id: str, n: int) -> int:
        """Return the `after` that yields the last `n` lines of output and what follows them; 0 if fewer."""
        query = _nth_from_last(run_id, n) if n > 0 else _last(run_id)
        seq = await self._db.read_one(lambda connection: connection.execute(query).scalar())
        return 0 if seq is None else seq - 1 if n > 0 else seq


def _filters(level: Level | None, stream: Stream | None, q: str | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if level is not None:
        severe = list(Level)[list(Level).index(level) :]
        conditions.append(_LINE.level.in_([item.value for item in severe]))
    if stream is not None:
        conditions.append(_LINE.stream == stream.value)
    if q:
        conditions.append(_LINE.content.icontains(clean(q), autoescape=True))
    return conditions


def _nth_from_last(run_id: str, n: int) -> Select[int]:
    lines = select(_LINE.seq).where(_LINE.run_id == run_id, _LINE.type == EventType.LOG.value)
    return lines.order_by(_LINE.seq.desc()).offset(n - 1).limit(1)


def _last(run_id: str) -> Select[int]:
    return select(_LINE.seq).where(_LINE.run_id == run_id).order_by(_LINE.seq.desc()).limit(1)
