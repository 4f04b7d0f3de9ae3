"""Between `Event` and a row of `log_lines`, and the one way to insert many rows fast.

PostgreSQL takes one array per column and unnests them (measured: several times faster than a row
per VALUES); SQLite takes one tuple per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, text

from app.db.clean import clean, clean_or_none, to_json
from app.db.tables import log_lines
from app.models import Event, EventType, Level, Stream

LINE_COLUMNS = ("run_id", "seq", "type", "ts", "attempt", "level", "stream", "step", "content", "data")
WHOLE_LINE = [log_lines.c[name] for name in LINE_COLUMNS]

_NUMBERS = {"seq": "bigint", "ts": "bigint", "attempt": "integer"}
_INTO = f"INSERT INTO log_lines ({', '.join(LINE_COLUMNS)})"
_ARRAYS = ", ".join(f"CAST(:line_{name} AS {_NUMBERS.get(name, 'text')}[])" for name in LINE_COLUMNS)
_SQLITE_INSERT = f"{_INTO} VALUES ({', '.join('?' * len(LINE_COLUMNS))})"


def insert_from(source: str) -> str:
    """Return a PostgreSQL INSERT of `line_arrays`, made only when `source` has a row."""
    return f"{_INTO} SELECT lines.* FROM {source}, unnest({_ARRAYS}) AS lines"


_POSTGRES_INSERT = text(insert_from("(SELECT 1) AS always"))


def line_values(event: Event) -> tuple[Any, ...]:
    """Return the values of `LINE_COLUMNS`."""
    return (
        event.run_id,
        event.seq,
        event.type.value,
        event.ts,
        event.attempt,
        None if event.level is None else event.level.value,
        None if event.stream is None else event.stream.value,
        clean_or_none(event.step),
        clean_or_none(event.content),
        to_json(event.data) if event.data else None,
    )


def line_arrays(events: Sequence[Event]) -> dict[str, list[Any]]:
    """Return the parameters of `insert_from`: a list per column."""
    columns = zip(*map(line_values, events), strict=True)
    return {f"line_{name}": list(column) for name, column in zip(LINE_COLUMNS, columns, strict=True)}


def insert_lines(connection: Connection, events: Sequence[Event]) -> None:
    """Insert `events`; an IntegrityError when one of their sequence numbers is taken."""
    if not events:
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_SQLITE_INSERT, [line_values(event) for event in events])
    else:
        connection.execute(_POSTGRES_INSERT, line_arrays(events))


def to_event(row: Sequence[Any]) -> Event:
    """Make an `Event` from a row of `LINE_COLUMNS`."""
    run_id, seq, kind, ts, attempt, level, stream, step, content, data = row
    return Event(
        seq=seq,
        type=EventType(kind),
        ts=ts,
        run_id=run_id,
        attempt=attempt,
        level=None if level is None else Level(level),
        stream=None if stream is None else Stream(stream),
        step=step,
        content=content,
        data={} if data is None else orjson.loads(data),
    )


def weigh(events: Sequence[Event]) -> tuple[int, int]:
    """Return how many lines of output `events` hold, and their bytes."""
    contents = [clean(event.content or "") for event in events if event.type is EventType.LOG]
    return len(contents), sum(len(content.encode()) for content in contents)
