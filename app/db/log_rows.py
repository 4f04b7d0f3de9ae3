"""How events are stored: a row of `log_lines` each; after the run's end up to 200 in a row of `log_chunks`.

Many rows at once. PostgreSQL takes one array per column and unnests them (measured: several times faster
than a row per VALUES). SQLite takes one tuple per row, but a batch of lines as one statement that reads them
from a JSON array: it releases the GIL once, where `executemany` does for every row and then waits
for a busy event loop to release it in turn (measured: 55 µs a row).

Many plain lines into PostgreSQL are one text (`insert_block`). A loud program's commit is thousands of lines
that differ in their content, and hardly in anything else. As an array per column they cost asyncpg four to
five times as much, and the server a fifth more (measured: 8.7 against 1.8 µs of the client's and 7.2
against 5.9 µs of the server's time a line, 1,000 lines of 200 bytes a statement). So their contents travel
joined by line feeds, which none of them holds, the rest as numbers, and `seq` is counted by the server.

A chunk's body is JSON, a list per column (alike values are together, times and numbers as differences),
compressed with zstd. docs/decisions/0006-log-storage.md has the figures. `format` names the layout:
a new one gets a new number, and the old ones stay readable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

import orjson
import zstandard
from sqlalchemy import Connection, text

from app.core.errors import StorageError
from app.core.events import Event, EventType, LineBatch, Written
from app.core.log_filter import BlockSummary, folded
from app.db.row_codec import clean, clean_or_none, from_json, stored_bytes, to_json, word, word_or
from app.db.tables import log_lines
from tailrun.process.lines import Level, Stream

CHUNK_EVENTS = 200
CHUNK_BYTES = 1_000_000
"""A chunk takes no further event once its contents are over this."""

_FORMAT = 1
_ZSTD_LEVEL = 1
_LEVEL_OF = {level.value: level for level in Level}
_STREAM_OF = {stream.value: stream for stream in Stream}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A row of `log_chunks`."""

    run_id: str
    summary: BlockSummary
    body: bytes

    def values(self) -> dict[str, Any]:
        """Return the row by column."""
        return {"run_id": self.run_id, **asdict(self.summary), "format": _FORMAT, "body": self.body}


def pack(events: Sequence[Event]) -> Chunk:
    """Make a chunk of `events`: of one run, in order, at least one."""
    columns = {
        "seq": _differences([event.seq for event in events]),
        "type": [event.type.value for event in events],
        "ts": _differences([event.ts for event in events]),
        "attempt": [event.attempt for event in events],
        "level": [event.level and event.level.value for event in events],
        "stream": [event.stream and event.stream.value for event in events],
        "step": [event.step for event in events],
        "content": [event.content for event in events],
        "data": [event.data or None for event in events],
    }
    body = zstandard.compress(orjson.dumps(columns), _ZSTD_LEVEL)
    return Chunk(events[0].run_id, BlockSummary.of(events), body)


def unpack(run_id: str, layout: int, body: bytes) -> bytes:
    """Return the columns of a chunk, for `may_hold` and `events_of`.

    `StorageError` when a newer release wrote it.
    """
    if layout != _FORMAT:
        raise StorageError(f"{run_id}: its log is stored in format {layout}, which a newer release reads")
    return zstandard.decompress(body)


def may_hold(columns: bytes, q: str) -> bool:
    """Whether a content may hold `q`: ten times faster than to look at each."""
    return folded(orjson.dumps(q)[1:-1].decode()) in columns.lower()


def events_of(run_id: str, columns: bytes) -> list[Event]:
    """Return the events of a chunk."""
    return list(_events(run_id, orjson.loads(columns)))


def _events(run_id: str, columns: dict[str, list[Any]]) -> Iterator[Event]:
    names = ("type", "attempt", "level", "stream", "step", "content", "data")
    numbers = zip(accumulate(columns["seq"]), accumulate(columns["ts"]), strict=True)
    rest = zip(*(columns[name] for name in names), strict=True)
    for (seq, ts), (kind, attempt, level, stream, step, content, data) in zip(numbers, rest, strict=True):
        yield Event(
            seq=seq,
            type=word(EventType, kind),
            ts=ts,
            run_id=run_id,
            attempt=attempt,
            level=None if level is None else _LEVEL_OF[level],
            stream=None if stream is None else _STREAM_OF[stream],
            step=step,
            content=content,
            data=data or {},
        )


def _differences(numbers: list[int]) -> list[int]:
    """Return the first number, then what each adds to the one before."""
    return [numbers[0], *(later - earlier for earlier, later in pairwise(numbers))]


LINE_COLUMNS = ("run_id", "seq", "type", "ts", "attempt", "level", "stream", "step", "content", "data")
WHOLE_LINE = [log_lines.c[name] for name in LINE_COLUMNS]

_NUMBERS = {"seq": "bigint", "ts": "bigint", "attempt": "integer"}
_INTO = f"INSERT INTO log_lines ({', '.join(LINE_COLUMNS)})"
_ARRAYS = ", ".join(f"CAST(:line_{name} AS {_NUMBERS.get(name, 'text')}[])" for name in LINE_COLUMNS)
_SQLITE_INSERT = f"{_INTO} VALUES ({', '.join('?' * len(LINE_COLUMNS))})"
_CODES = {word: str(code) for code, word in enumerate((*Level, *Stream))}


def _decoded(words: type[Level | Stream]) -> str:
    cases = " ".join(f"WHEN '{_CODES[word]}' THEN '{word.value}'" for word in words)
    return f"CASE substr(?, key + 1, 1) {cases} END"


_SQLITE_BATCH = (
    f"{_INTO} SELECT ?, ? + key, 'log', ?, ?, {_decoded(Level)}, {_decoded(Stream)}, ?, value, NULL"
    " FROM json_each(?)"
)


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


def line_arrays(events: Sequence[Written]) -> dict[str, list[Any]]:
    """Return the parameters of `insert_from`: a list per column."""
    columns = tuple(list[Any]() for _ in LINE_COLUMNS)
    for written in events:
        if (batch := written.plain()) is not None:
            _extend(columns, batch)
            continue
        for event in written.events():
            for column, value in zip(columns, line_values(event), strict=True):
                column.append(value)
    return {f"line_{name}": column for name, column in zip(LINE_COLUMNS, columns, strict=True)}


def insert_lines(connection: Connection, events: Sequence[Written]) -> None:
    """Insert `events`; an IntegrityError when one of their sequence numbers is taken."""
    if not events:
        return
    if connection.dialect.name != "sqlite":
        connection.execute(_POSTGRES_INSERT, line_arrays(events))
        return
    rows = list[tuple[Any, ...]]()
    for written in events:
        if (batch := written.plain()) is not None:
            connection.exec_driver_sql(_SQLITE_BATCH, _batch_values(batch))
        else:
            rows += map(line_values, written.events())
    if rows:
        connection.exec_driver_sql(_SQLITE_INSERT, rows)


def _extend(columns: Sequence[list[Any]], batch: LineBatch) -> None:
    """Add a batch of lines to the columns of `LINE_COLUMNS`."""
    lines, count = batch.lines, len(batch.lines)
    values = (
        [batch.run_id] * count,
        range(batch.first, batch.first + count),
        [EventType.LOG.value] * count,
        [batch.ts] * count,
        [batch.attempt] * count,
        [line.level.value for line in lines],
        [line.stream.value for line in lines],
        [clean_or_none(batch.step)] * count,
        _contents(batch),
        [None] * count,
    )
    for column, more in zip(columns, values, strict=True):
        column.extend(more)


def _batch_values(batch: LineBatch) -> tuple[Any, ...]:
    """Return the values of `_SQLITE_BATCH`."""
    levels = "".join([_CODES[line.level] for line in batch.lines])
    streams = "".join([_CODES[line.stream] for line in batch.lines])
    contents = orjson.dumps(_contents(batch)).decode()
    step = clean_or_none(batch.step)
    return (batch.run_id, batch.first, batch.ts, batch.attempt, levels, streams, step, contents)


def _contents(batch: LineBatch) -> list[str]:
    """Return the texts of a batch, each `clean`: looked at together, for that is cheap."""
    contents = batch.contents
    text = "".join(contents)
    return contents if clean(text) is text else list(map(clean, contents))


def to_event(row: Sequence[Any]) -> Event:
    """Make an `Event` from a row of `LINE_COLUMNS`."""
    run_id, seq, kind, ts, attempt, level, stream, step, content, data = row
    return Event(
        seq=seq,
        type=word(EventType, kind),
        ts=ts,
        run_id=run_id,
        attempt=attempt,
        level=word_or(Level.INFO, level),
        stream=word_or(Stream.SYSTEM, stream),
        step=step,
        content=content,
        data={} if data is None else from_json(data, {}, "log_lines.data"),
    )


def weigh(events: Sequence[Written]) -> tuple[int, int]:
    """Return how many lines of output `events` hold, and their bytes."""
    lines = size = 0
    for written in events:
        contents = written.contents
        lines += len(contents)
        size += stored_bytes("".join(contents))
    return lines, size


_LEVELS, _STREAMS = tuple(Level), tuple(Stream)
_FEW = 16
"""Below so many lines it is not worth a second shape of the statement."""


def _array(words: Sequence[str]) -> str:
    return "(ARRAY[" + ", ".join(f"'{word}'" for word in words) + "])"


def insert_block(source: str) -> str:
    """Return the INSERT of `block_values`, made only when `source` has a row."""
    level = f"{_array(_LEVELS)}[1 + l.code / {len(_STREAMS)}]"
    stream = f"{_array(_STREAMS)}[1 + l.code % {len(_STREAMS)}]"
    return f"""INSERT INTO log_lines (run_id, seq, type, ts, attempt, level, stream, step, content)
 SELECT CAST(:block_run_id AS text), CAST(:block_first AS bigint) + l.nth - 1, 'log', l.ts,
 CAST(:block_attempt AS integer), {level}, {stream}, CAST(:block_step AS text), l.content
 FROM {source}, unnest(string_to_array(CAST(:block_contents AS text), chr(10)),
 CAST(:block_codes AS smallint[]), CAST(:block_ts AS bigint[])) WITH ORDINALITY
 AS l (content, code, ts, nth)"""


def block_values(events: Sequence[Written]) -> dict[str, Any] | None:
    """Return the parameters of `insert_block`; None for what is no block: it goes in row by row.

    A block is consecutive plain lines of one run, attempt and step.
    """
    batches = _alike(events)
    if batches is None:
        return None
    contents = [line.content for batch in batches for line in batch.lines]
    if len(contents) < _FEW:
        return None
    text = clean("\n".join(contents))
    if text.count("\n") != len(contents) - 1:
        return None
    first = batches[0]
    return {
        "block_run_id": first.run_id,
        "block_first": first.first,
        "block_attempt": first.attempt,
        "block_step": clean_or_none(first.step),
        "block_contents": text,
        "block_codes": _codes(batches),
        "block_ts": [batch.ts for batch in batches for _ in batch.lines],
    }


def _alike(events: Sequence[Written]) -> list[LineBatch] | None:
    """Return `events` as the batches of one block; None if they are no block."""
    batches = list[LineBatch]()
    for written in events:
        batch = written.plain()
        if batch is None:
            return None
        if batches:
            last = batches[-1]
            same = (batch.run_id, batch.attempt, batch.step) == (last.run_id, last.attempt, last.step)
            if not same or batch.first != last.seq + 1:
                return None
        batches.append(batch)
    return batches


def _codes(batches: Sequence[LineBatch]) -> list[int]:
    """Return a number for each line's level and stream; most lines have those of the line before."""
    codes = list[int]()
    level: Level | None = None
    stream: Stream | None = None
    code = 0
    for batch in batches:
        for line in batch.lines:
            if line.level is not level or line.stream is not stream:
                level, stream = line.level, line.stream
                code = _LEVELS.index(level) * len(_STREAMS) + _STREAMS.index(stream)
            codes.append(code)
    return codes
