"""How many lines a second one worker takes from its tools' pipes to the database and to watchers.

Two loads, on SQLite and on PostgreSQL: one run that prints as fast as it can, and fifty that print
2 000 lines a second each. Every run has a watcher, which checks each `seq`; afterwards the rows are
counted in the database itself. A line that is missing ends the benchmark.

    python bench/ingest.py            both loads, both databases; writes docs/benchmarks-ingest.md
    python bench/ingest.py --quick    fewer lines, SQLite, nothing is written
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]

import psycopg  # noqa: E402
from machine import machine, today  # noqa: E402
from stack import Stack  # noqa: E402
from support.postgres_server import PostgresServer  # noqa: E402
from wire import Wire, watch  # noqa: E402

TARGET = ROOT / "docs" / "benchmarks-ingest.md"
WIDTH = 200
SEQ = re.compile(rb"^id: (\d+)$", re.MULTILINE)
LIMIT_S = 240.0
COLUMNS = (
    "database",
    "load",
    "lines/s",
    "CPU s per 100,000 lines: worker / API / Redis",
    "peak RSS in MB: worker / API / Redis",
)
FLOOD = (
    "import sys; w = sys.stdout.write; b = ('x' * {width} + '\\n') * 50; [w(b) for _ in range({lines} // 50)]"
)
PACED = """
import sys, time
began = time.monotonic()
for n in range({lines} // 20):
    sys.stdout.write(("x" * {width} + "\\n") * 20)
    sys.stdout.flush()
    wait = began + (n + 1) * 20 / {rate} - time.monotonic()
    if wait > 0:
        time.sleep(wait)
"""


@dataclass
class Load:
    """Some runs at once: what each of them prints."""

    name: str
    runs: int
    lines: int
    program: str


@dataclass
class Peak:
    """The most memory that each process had while it was watched, in bytes."""

    rss: dict[str, int] = field(default_factory=dict[str, int])

    async def watch(self, stack: Stack) -> None:
        """Look ten times a second, until cancelled."""
        processes = stack.processes()
        while True:
            for name, process in processes.items():
                self.rss[name] = max(self.rss.get(name, 0), process.memory_info().rss)
            await asyncio.sleep(0.1)


async def _follow(stack: Stack, run_id: str, ready: asyncio.Semaphore) -> tuple[int, float, float]:
    """Read a stream to its end, checking each seq; return the last, and when first and last bytes came."""
    async with watch(stack, run_id) as reader:
        ready.release()
        last, carry, first = 0, b"", 0.0
        while piece := await reader.read(1 << 18):
            cut = piece.rfind(b"\n\n")
            if cut < 0:
                carry += piece
                continue
            seqs = [int(found) for found in SEQ.findall(carry + piece[:cut])]
            carry = piece[cut + 1 :]
            if seqs and (seqs[0] != last + 1 or seqs != list(range(seqs[0], seqs[-1] + 1))):
                raise SystemExit(
                    f"a hole or a double after {last}: {seqs[0]} to {seqs[-1]}, {len(seqs)} events"
                )
            if seqs:
                last = seqs[-1]
                first = first or (time.perf_counter() if last > 10 else 0.0)
        return last, first, time.perf_counter()


async def measure(stack: Stack, load: Load, rows_of: Callable[[str], tuple[int, ...]]) -> list[str]:
    """Put one load through; return the cells of its row."""
    wire, ready = Wire(stack), asyncio.Semaphore(0)
    body = {"argv": ["python", "-c", load.program], "start": False}
    ids = [(await wire.request("POST", "/v1/runs", body))["run_id"] for _ in range(load.runs)]
    readers = [asyncio.create_task(_follow(stack, run_id, ready)) for run_id in ids]
    for _ in readers:
        await ready.acquire()
    peak, before = Peak(), stack.cpu_s()
    watching = asyncio.create_task(peak.watch(stack))
    began = time.perf_counter()
    for run_id in ids:
        await wire.request("POST", f"/v1/runs/{run_id}/start")
    wire.close()
    async with asyncio.timeout(LIMIT_S):
        seen = await asyncio.gather(*readers)
    took = max(last for _, _, last in seen) - min(first for _, first, _ in seen)
    watching.cancel()
    used = {name: after - before[name] for name, after in stack.cpu_s().items()}
    for run_id, (last, _, _) in zip(ids, seen, strict=True):
        await _check(wire, run_id, load.lines, last, rows_of(run_id))
    wire.close()
    total = load.runs * load.lines
    cpu = {name: f"{100_000 * s / total:.2f}" for name, s in used.items()}
    rss = {name: f"{size / 1e6:.0f}" for name, size in peak.rss.items()}
    print(f"  {load.name}: {total / took:,.0f} lines/s, {time.perf_counter() - began:.0f} s", flush=True)
    return [
        load.name,
        f"{total / took:,.0f}",
        f"{cpu['worker']} / {cpu['api']} / {cpu['redis']}",
        f"{rss['worker']} / {rss['api']} / {rss['redis']}",
    ]


async def _check(wire: Wire, run_id: str, lines: int, last: int, rows: tuple[int, ...]) -> None:
    """Compare what was printed, what the watcher had, what the run says and what the database holds."""
    run: dict[str, Any] = await wire.request("GET", f"/v1/runs/{run_id}")
    held = (run["status"], run["log_lines"], run["last_seq"], *rows)
    if held != ("succeeded", lines, last, last, 1, last, last, lines):
        raise SystemExit(f"lines are missing: {lines} printed, seq {last} seen, the rest: {held}; {run}")


ROWS = """SELECT count(*), min(seq), max(seq), count(DISTINCT seq),
 sum(CASE WHEN type = 'log' AND stream = 'stdout' THEN 1 ELSE 0 END) FROM log_lines WHERE run_id = """


def _sqlite_rows(stack: Stack) -> Callable[[str], tuple[int, ...]]:
    [path] = stack.folder.rglob("*.db")

    def rows(run_id: str) -> tuple[int, ...]:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return connection.execute(ROWS + "?", (run_id,)).fetchone()
        finally:
            connection.close()

    return rows


def _postgres_rows(url: str) -> Callable[[str], tuple[int, ...]]:
    def rows(run_id: str) -> tuple[int, ...]:
        with psycopg.connect(url) as connection:
            found = connection.execute(ROWS + "%s", (run_id,)).fetchone()
        assert found is not None
        return tuple(int(value) for value in found)

    return rows


def loads(*, quick: bool) -> list[Load]:
    """Return what is put through the worker."""
    flood, runs, seconds = (300_000, 10, 3) if quick else (2_000_000, 50, 10)
    return [
        Load(f"one run, {flood:,} lines", 1, flood, FLOOD.format(width=WIDTH - 1, lines=flood)),
        Load(
            f"{runs} runs of 2,000 lines/s for {seconds} s",
            runs,
            2_000 * seconds,
            PACED.format(width=WIDTH - 1, lines=2_000 * seconds, rate=2_000),
        ),
    ]


def run_all(*, quick: bool) -> list[list[str]]:
    """Measure each load on each database, on a fresh system each time."""
    rows: list[list[str]] = []
    for database in ("SQLite",) if quick else ("SQLite", "PostgreSQL"):
        for load in loads(quick=quick):
            with ExitStack() as closing:
                settings = {
                    "LOG_MAX_BYTES": "2000000000",
                    "WORKER_CONCURRENCY": str(load.runs),
                    "LOG_PACK_AFTER_S": "3600",
                }
                if database == "PostgreSQL":
                    server = PostgresServer().start()
                    closing.callback(server.close)
                    settings["DATABASE_URL"] = server.url
                stack = closing.enter_context(Stack(**settings))
                counted = _postgres_rows(server.url) if database == "PostgreSQL" else _sqlite_rows(stack)
                rows.append([database, *asyncio.run(measure(stack, load, counted))])
    return rows


def document(rows: list[list[str]], busy: float) -> str:
    """Write docs/benchmarks-ingest.md."""
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""# Benchmark: from the tool's pipe to the database and a watcher

`make bench WHAT=ingest` measures this and writes it here: one API, one worker (local executor) and
an embedded
Redis as real processes, {WIDTH}-byte lines, `LOG_MAX_BYTES` raised, `WORKER_CONCURRENCY` as many as there are
runs. Every run has an SSE watcher. Programs, watchers and database share the machine with them. Absolute
figures move with the machine; compare what was measured in one go.

Measured {today()} on: {machine()}. Load of the machine before: {busy:.1f}.

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}
{table}

- **lines/s**: all lines over the time from a watcher's first line to the last watcher's end of stream, which
  comes after everything is committed. Fifty runs of 2,000 lines/s print for ten seconds when nothing holds
  them up: 100,000 lines/s is all there is to have. A worker that cannot follow stops the programs at their
  pipes.
- **Nothing lost** is a condition, not a row: every watcher checks that it gets 1..n without a hole or a
  double; `last_seq` and `log_lines` of the run must agree, and so must count, lowest, highest and distinct
  `seq` of the rows in the database. The benchmark fails otherwise.
- **CPU** of the worker includes the programs' guards and the programs that have ended.
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a look in less than a minute; writes nothing")
    quick: bool = parser.parse_args().quick
    began, busy = time.monotonic(), os.getloadavg()[0]
    print(machine())
    rows = run_all(quick=quick)
    for row in rows:
        print("  " + " | ".join(row))
    if not quick:
        TARGET.write_text(document(rows, busy), encoding="utf-8")
        print(f"{TARGET.relative_to(ROOT)} written")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
