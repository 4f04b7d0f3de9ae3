"""Reading the log: pages by sequence number, filters, the last lines; whether in rows or in chunks.

A page is put together in steps, each of which is one statement and moves a cursor on: chunks while
there are any above it, then rows. The janitor may pack or delete between two steps: what follows a
cursor is the same before and after, so a page needs no transaction (see `log_queries`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select

from app.db import log_queries
from app.db.clean import clean
from app.db.engine import Database
from app.db.log_chunks import CHUNK_EVENTS, events_of, may_hold, unpack
from app.db.log_rows import to_event
from app.db.log_stages import is_archived
from app.log_filter import LogFilter
from app.models import Event, EventType, Level, Stream

_CHUNKS_AT_ONCE = 16


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
        """Return up to `limit` events with a `seq` above `after`, in order, that pass the filters.

        `LogFilter` says what passes.
        """
        wanted = LogFilter(level, stream, None if q is None else clean(q))
        found: list[Event] = []
        while True:
            room = limit - len(found)
            query = log_queries.rows_after(run_id, after, room, wanted, self._db.dialect)
            answers = await self._ask(query)
            if answers[0][0] <= after:
                return found + [to_event(answer[1:]) for answer in answers if answer[1] is not None]
            after = await self._from_chunks(run_id, after, limit, wanted, found)
            if len(found) == limit:
                return found

    async def tail_cursor(self, run_id: str, n: int) -> int:
        """Return the `after` that yields the last `n` lines of output and what follows them; 0 if fewer."""
        if n <= 0:
            packed, row = (await self._ask(log_queries.last_seq(run_id)))[0]
            return max(packed, row or 0)
        packed, lines, first = (await self._ask(log_queries.last_lines(run_id, n)))[0]
        if lines == n:
            return first - 1
        return await self._packed_cursor(run_id, n - lines) if packed else 0

    async def archived(self, run_id: str) -> bool:
        """Whether lines of this log are deleted here and stand in the run's archive."""
        answers = await self._ask(log_queries.last_rows(run_id, 2))
        return any(is_archived(to_event(answer)) for answer in answers)

    async def _from_chunks(
        self, run_id: str, after: int, limit: int, wanted: LogFilter, found: list[Event]
    ) -> int:
        """Add to `found` what passes of the next chunks, up to `limit`; return the cursor after them."""
        plain = wanted == LogFilter()
        at_once = min(_CHUNKS_AT_ONCE, (limit - len(found)) // CHUNK_EVENTS + 2) if plain else _CHUNKS_AT_ONCE
        answers = await self._ask(log_queries.chunks_after(run_id, after, at_once, wanted))
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
        answers = await self._ask(log_queries.chunk_of_line(run_id, n))
        for layout, body, lines_from_here in answers:
            events = events_of(run_id, unpack(run_id, layout, body))
            lines = [event.seq for event in events if event.type is EventType.LOG]
            return lines[lines_from_here - n] - 1
        return 0

    async def _ask(self, query: Select[*tuple[Any, ...]]) -> Sequence[Any]:
        return await self._db.read_one(lambda connection: connection.execute(query).all())
