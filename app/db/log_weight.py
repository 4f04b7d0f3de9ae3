"""The weight of a log against `LOG_MAX_BYTES`: the bytes of its events, and what their rows cost beside them.

A row has a price of its own: without it a program that prints empty lines would never meet the limit.
Weights come in blocks, because the cap moves over thousands of lines and needs no single one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, LargeBinary, case, cast, func, select
from sqlalchemy.sql.elements import ColumnElement

from app.core.events import Event, EventType, Written
from app.db.row_codec import stored_bytes, to_json
from app.db.tables import log_lines

ROW_BYTES = 100
"""The weight of an event beside its step, content and data.

Measured with lines of 0 to 200 bytes, over their content: 83 to 100 bytes a row in SQLite, 142 to 156 in
PostgreSQL, index included.
"""
_STORED_EVENTS = 16
"""Events of one stored block."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive events up to `last_seq`: lines of output among them, their bytes, and what all weigh."""

    last_seq: int
    lines: int
    bytes: int
    weight: int

    def joined(self, following: Block) -> Block:
        """Return this block and the one behind it as one."""
        return Block(
            following.last_seq,
            self.lines + following.lines,
            self.bytes + following.bytes,
            self.weight + following.weight,
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """A run's stored log: the data of its cut's marker, and the blocks behind it, in order."""

    blocks: Sequence[Block]
    cut: dict[str, Any] | None


def blocks_of(written: Written, grain: int) -> Iterator[Block]:
    """Yield what is written in blocks that weigh at most `grain`, or are one event."""
    if (batch := written.plain()) is None:
        yield from map(_block, written.events())
    else:
        yield from _blocks(batch.contents, batch.first, ROW_BYTES + stored_bytes(batch.step or ""), grain)


def _block(event: Event) -> Block:
    line = event.type is EventType.LOG
    size = stored_bytes(event.content or "")
    data = stored_bytes(to_json(event.data)) if event.data else 0
    weight = ROW_BYTES + stored_bytes(event.step or "") + size + data
    return Block(event.seq, int(line), size if line else 0, weight)


def _blocks(contents: Sequence[str], first: int, row: int, grain: int) -> Iterator[Block]:
    count = len(contents)
    size = stored_bytes("".join(contents))
    weight = row * count + size
    if weight <= grain or count == 1:
        yield Block(first + count - 1, count, size, weight)
        return
    step = -(-count // min(count, -(-weight // grain)))
    for at in range(0, count, step):
        yield from _blocks(contents[at : at + step], first + at, row, grain)


def kept(connection: Connection, run_id: str) -> Kept:
    """Weigh what is stored of a run that has not ended. Reads all of its rows, which the cap bounds."""
    line = log_lines.c
    sqlite = connection.dialect.name == "sqlite"

    def octets(column: ColumnElement[Any]) -> ColumnElement[Any]:
        length = func.length(cast(column, LargeBinary)) if sqlite else func.octet_length(column)
        return func.coalesce(length, 0)

    is_line = line.type == EventType.LOG
    size = octets(line.content)
    last = func.max(line.seq)
    columns = (
        last,
        func.sum(case((is_line, 1), else_=0)),
        func.sum(case((is_line, size), else_=0)),
        func.sum(ROW_BYTES + size + octets(line.step) + octets(line.data)),
    )
    of_run = line.run_id == run_id
    marker = select(line.data).where(of_run, line.type == EventType.TRUNCATED).order_by(line.seq).limit(1)
    found = connection.execute(marker).scalar()
    cut = None if found is None else orjson.loads(found)
    after = of_run if cut is None else of_run & (line.seq > cut["to"])
    groups = select(*columns).where(after).group_by(line.seq // _STORED_EVENTS).order_by(last)
    return Kept([Block(*map(int, row)) for row in connection.execute(groups)], cut)
