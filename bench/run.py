"""Measure the system as users start it, print the figures, and write docs/benchmarks.md.

Every part runs against real processes: API, worker, Redis, database. The load generator shares the machine
with them and is not subtracted; that is why the machine is named.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]

import idle  # noqa: E402
import latency  # noqa: E402
import lines  # noqa: E402
import runs  # noqa: E402
from machine import machine, today  # noqa: E402
from stack import Stack  # noqa: E402
from support.postgres_server import PostgresServer  # noqa: E402

Rows = list[tuple[str, str]]
TARGET = ROOT / "docs" / "benchmarks.md"


def say(rows: Rows) -> Rows:
    """Print rows as they are measured."""
    for name, figure in rows:
        print(f"  {name:<70} {figure}", flush=True)
    return rows


async def on_sqlite() -> Rows:
    """Everything, with the defaults of one machine."""
    with Stack(LOG_MAX_BYTES="1000000000") as stack:
        rows = say(await idle.measure(stack))
        rows += say(await latency.measure(stack))
        rows += say(await runs.measure(stack, "SQLite"))
        rows += say(await lines.measure(stack))
    return rows


async def on_postgres() -> Rows:
    """What depends on the database, with PostgreSQL."""
    server = PostgresServer().start()
    try:
        with Stack(DATABASE_URL=server.url) as stack:
            return say(await runs.measure(stack, "PostgreSQL"))
    finally:
        server.close()


def document(rows: Rows, busy: float) -> str:
    """Write docs/benchmarks.md."""
    table = "\n".join(f"| {name} | {figure} |" for name, figure in rows)
    return f"""# Benchmarks

`make bench` measures these on your machine and writes them here: one API and one worker process with their
defaults (`LOG_MAX_BYTES` raised for the lines), an embedded Redis, SQLite or PostgreSQL on the same machine.
The load generator takes part of the same cores. Absolute figures move with the machine and with whatever else
it does; compare only what was measured in one go.

Measured {today()} on: {machine()}. Load of the machine before: {busy:.1f}.

| what | figure |
|---|---|
{table}

How they are taken:

- **Submit → first step, first line**: from before the POST to when a watcher has read that event of the run's
  SSE stream, opened after the POST was answered; one run at a time. A line includes starting the program.
- **Whole runs**: `POST /v1/runs` with one `file_write` step from several connections, until the last run's
  end is committed.
- **Lines**: one Python program prints lines without a pause; from the first line at a watcher to the end of
  the last watcher's stream. Each watcher's lines are counted, and one that is missing fails the benchmark.
- **Idle**: CPU seconds over ten seconds in which nothing happens.
"""


def main() -> None:
    """Measure, print, write."""
    began, busy = time.monotonic(), os.getloadavg()[0]
    print(machine())
    rows = asyncio.run(on_sqlite()) + asyncio.run(on_postgres())
    TARGET.write_text(document(rows, busy), encoding="utf-8")
    print(f"{TARGET.relative_to(ROOT)} written after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
