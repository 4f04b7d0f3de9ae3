"""Ways to keep log lines, against the one that is used: how fast they go in, how large they are.

    python bench/log_storage.py            prints ratios for docs/decisions/0006-log-storage.md

Each way takes its turn in every round, on the same machine and database, and the median of its
rounds counts; what is printed is the ratio to the way that is in use. Needs a minute or two.
"""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import zstandard

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.postgres_server import PostgresServer  # noqa: E402

from app.core.events import Event, EventType, LineBatch  # noqa: E402
from app.db.log_rows import (  # noqa: E402  # noqa: E402
    LINE_COLUMNS,
    block_values,
    events_of,
    insert_block,
    line_arrays,
    line_values,
    pack,
    unpack,
)
from app.db.migrate import migrate  # noqa: E402
from tailrun.process.lines import Level, Line, Stream  # noqa: E402

ROUNDS = 7
LINES = 10_000
WORDS = [
    "run",
    "start",
    "file",
    "path",
    "error",
    "retry",
    "build",
    "step",
    "test",
    "pass",
    "import",
    "request",
    "user",
    "token",
    "cache",
    "index",
]
FENCE = "UPDATE runs SET last_seq = last_seq + 1 WHERE run_id = $1 AND attempt = 1"
COLUMNS = ", ".join(LINE_COLUMNS)
NUMBERS = {"seq": "bigint", "ts": "bigint", "attempt": "integer"}
ARRAYS = ", ".join(f"${n}::{NUMBERS.get(name, 'text')}[]" for n, name in enumerate(LINE_COLUMNS, 2))
UNNEST = (
    f"WITH fence AS ({FENCE} RETURNING 1) "
    f"INSERT INTO log_lines ({COLUMNS}) SELECT lines.* FROM fence, unnest({ARRAYS}) AS lines"
)
BLOCK = f"WITH fence AS ({FENCE} RETURNING 1) {insert_block('fence')}"
RUN = {"run_id": "r", "user_id": "u", "kind": "argv", "status": "running", "spec": "{}", "labels": "{}"}
ZEROES = ("created_at", "retries", "redeliveries", "max_attempts", "log_lines", "log_size", "last_seq")


def lines(count: int) -> list[Event]:
    """Make lines as programs print them: words, numbers, times; about 150 bytes."""
    chance = random.Random(1)
    run_id, now, made = str(uuid.UUID(int=7)), 1_790_000_000_000_000, []
    for seq in range(1, count + 1):
        now += chance.randrange(20, 900)
        words = " ".join(chance.choices(WORDS, k=16))
        content = f"2026-11-20 12:00:{seq % 60:02} INFO {words} {chance.getrandbits(40):x} {seq}"
        made.append(Event(seq, EventType.LOG, now, run_id, 1, Level.INFO, Stream.STDOUT, "s1", content))
    return made


def batch_of(events: list[Event]) -> LineBatch:
    """Make what the log writer hands over for lines of one read."""
    first = events[0]
    printed = [Line(Stream.STDOUT, event.content or "", Level.INFO) for event in events]
    return LineBatch(first.seq, first.ts, first.run_id, 1, first.step, printed)


async def compare(ways: dict[str, Callable[[], Awaitable[None]]], what: str) -> None:
    """Print each way's lines a second as a ratio to the first's."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            await way()
            took[name].append(time.perf_counter() - began)
    first = statistics.median(next(iter(took.values())))
    for name, times in took.items():
        print(f"{what:<28} {name:<34} {first / statistics.median(times):6.2f}")


async def postgres(batch: int) -> None:
    """Compare one fenced statement, by columns and as one text, to COPY in a fenced transaction."""
    server = PostgresServer().start()
    await asyncio.to_thread(migrate, server.url)
    db = await asyncpg.connect(server.url)
    names = ", ".join((*RUN, *ZEROES))
    values = ", ".join([*(f"'{value}'" for value in RUN.values()), *("0" for _ in ZEROES)])
    await db.execute(
        f"INSERT INTO runs ({names}, attempt, timeout_s, truncated) VALUES ({values}, 1, 1, false)"
    )
    made = lines(LINES)
    batches = [made[at : at + batch] for at in range(0, LINES, batch)]
    blocks = [batch_of(events) for events in batches]
    names_of = list(block_values(blocks[:1]) or ())
    one_text = re.sub(r":(block_\w+)", lambda name: f"${names_of.index(name[1]) + 2}", BLOCK)

    async def block() -> None:
        for each in blocks:
            await db.execute(one_text, "r", *(block_values([each]) or {}).values())
        await db.execute("TRUNCATE log_lines")

    async def unnest() -> None:
        for events in batches:
            await db.execute(UNNEST, "r", *line_arrays(events).values())
        await db.execute("TRUNCATE log_lines")

    async def copy() -> None:
        for events in batches:
            async with db.transaction():
                await db.execute(FENCE, "r")
                records = [line_values(event) for event in events]
                await db.copy_records_to_table("log_lines", records=records, columns=LINE_COLUMNS)
        await db.execute("TRUNCATE log_lines")

    try:
        await compare(
            {
                "unnest, one statement": unnest,
                "one text, one statement": block,
                "COPY in a transaction": copy,
            },
            f"PostgreSQL, {batch}",
        )
    finally:
        await db.close()
        server.close()


async def sqlite(batch: int, folder: str) -> None:
    """Compare executemany to rows by VALUES and to one JSON argument."""
    url = f"sqlite:///{folder}/{batch}.db"
    await asyncio.to_thread(migrate, url)
    db = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    db.execute("PRAGMA synchronous=NORMAL")
    marks = f"({', '.join('?' * len(LINE_COLUMNS))})"
    into = f"INSERT INTO log_lines ({COLUMNS})"
    batches = [lines(LINES)[at : at + batch] for at in range(0, LINES, batch)]
    parts = ", ".join(f"json_extract(value, '$[{n}]')" for n in range(len(LINE_COLUMNS)))

    def way(insert: Callable[[list[tuple[Any, ...]]], Any]) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            for events in batches:
                db.execute("BEGIN IMMEDIATE")
                insert([line_values(event) for event in events])
                db.execute("COMMIT")
            db.execute("DELETE FROM log_lines")

        return run

    def by_values(rows: list[tuple[Any, ...]]) -> None:
        statement = f"{into} VALUES {', '.join([marks] * len(rows))}"
        db.execute(statement, [value for row in rows for value in row])

    def by_json(rows: list[tuple[Any, ...]]) -> None:
        db.execute(f"{into} SELECT {parts} FROM json_each(?)", (orjson.dumps(rows).decode(),))

    await compare(
        {
            "executemany": way(lambda rows: db.executemany(f"{into} VALUES {marks}", rows)),
            "one VALUES of all rows": way(by_values),
            "json_each": way(by_json),
        },
        f"SQLite, {batch}",
    )
    db.close()


def sizes(folder: str) -> None:
    """Print the size of a line in chunks of several lengths and layouts, against SQLite's rows."""
    events = lines(LINES)
    url = f"sqlite:///{folder}/sizes.db"
    migrate(url)
    db = sqlite3.connect(url.removeprefix("sqlite:///"))
    before = db.execute("PRAGMA page_count").fetchone()[0]
    marks = ", ".join("?" * len(LINE_COLUMNS))
    db.executemany(f"INSERT INTO log_lines ({COLUMNS}) VALUES ({marks})", [line_values(e) for e in events])
    row = (db.execute("PRAGMA page_count").fetchone()[0] - before) * 4096 / LINES
    db.close()
    print(f"{'size of a line':<28} {'row (SQLite)':<34} {1:6.2f}   {row:.0f} B")
    for count in (50, 100, 200, 500):
        for name, encode in (
            ("columns, zstd 1", lambda block: pack(block).body),
            ("columns, zstd 3", lambda block: _again(pack(block).body, 3)),
            ("ndjson, zstd 1", lambda block: zstandard.compress(b"\n".join(e.encode() for e in block), 1)),
        ):
            began = time.perf_counter()
            size = sum(len(encode(events[at : at + count])) for at in range(0, LINES, count)) / LINES
            rate = LINES / (time.perf_counter() - began) / 1000
            print(f"{f'{count} lines':<28} {name:<34} {size / row:6.2f}   {size:.0f} B, {rate:.0f} k lines/s")
    bodies = [pack(events[at : at + 200]).body for at in range(0, LINES, 200)]
    began = time.perf_counter()
    for body in bodies:
        events_of("r", unpack("r", 1, body))
    print(f"reading 200 lines of a chunk: {(time.perf_counter() - began) / len(bodies) * 1e3:.2f} ms")


def _again(body: bytes, level: int) -> bytes:
    return zstandard.compress(zstandard.decompress(body), level)


def main() -> None:
    """Measure everything."""
    with tempfile.TemporaryDirectory() as folder:
        sizes(folder)
        for batch in (20, 100, 500, 2000):
            asyncio.run(sqlite(batch, folder))
        for batch in (20, 100, 500, 2000):
            asyncio.run(postgres(batch))


if __name__ == "__main__":
    main()
