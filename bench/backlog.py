"""What much history and a long backlog cost: claims and requests on a seeded database, against an empty one.

`make bench WHAT=backlog` seeds both databases with a million ended and 100 000 queued runs, by
statistics of a
quieter time, measures and writes docs/benchmarks-backlog.md; two words after it say other numbers. Claims go
through the store as a worker's do; requests go to an API process. No worker runs, so the backlog stays.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]

import httpx2  # noqa: E402
import seeded_runs  # noqa: E402
from machine import machine, today  # noqa: E402
from support.postgres_server import PostgresServer, postgres_database  # noqa: E402
from support.run_rows import ended, new_run  # noqa: E402
from support.seeded_runs import NOW, Seed, run_id  # noqa: E402
from support.servers import RedisServer, free_port  # noqa: E402

from app.core.models import Fence  # noqa: E402
from app.db.engine import Database  # noqa: E402
from app.db.migrate import migrate  # noqa: E402
from app.db.run_store import RunStore  # noqa: E402

Row = tuple[str, str, str]
TARGET = ROOT / "docs" / "benchmarks-backlog.md"
ROUNDS, CLAIMS_A_ROUND, AT_ONCE = 5, 20, 10
REQUESTS = 60
START_S = 60.0
PATHS = (
    "/metrics",
    "/v1/queue",
    "/v1/runs?limit=50",
    *(f"/v1/runs?status={status}&limit=50" for status in ("queued", "failed", "timed_out")),
    "/v1/runs?all=1&status=failed&limit=50",
)


async def claim_rates(url: str, waiting: range) -> list[float]:
    """Claim runs that wait and end them, some at once; return the runs a second of each round."""
    db = Database(url)
    store, rates = RunStore(db), list[float]()
    ids = [run_id(number) for number in waiting[: ROUNDS * CLAIMS_A_ROUND * AT_ONCE]]
    for _ in range(len(ids), ROUNDS * CLAIMS_A_ROUND * AT_ONCE):
        made = await store.create(new_run(run_id=secrets.token_hex(16)), NOW)
        ids += [made.run.run_id]
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(CLAIMS_A_ROUND):
            some, ids = ids[:AT_ONCE], ids[AT_ONCE:]
            for run in await store.claim(some, "w-bench", NOW):
                fence = Fence(run.run_id, run.attempt, "w-bench")
                await store.commit(fence, run.last_seq, ended(run.run_id, run.last_seq + 1))
        rates.append(CLAIMS_A_ROUND * AT_ONCE / (time.perf_counter() - began))
    await db.close()
    return rates


@contextmanager
def api(url: str) -> Iterator[httpx2.Client]:
    """An API process over that database, with a Redis of its own; yields an admin's client."""
    folder, token, port = Path(tempfile.mkdtemp(prefix="tailrun-bench-")), secrets.token_hex(16), free_port()
    redis = RedisServer(folder, appendonly=False).start()
    more = {"DATABASE_URL": url, "REDIS_URL": redis.url, "API_TOKEN": token, "DATA_DIR": str(folder)}
    more |= {"PORT": str(port), "USER_BACKLOG_MAX": "10000000", "LOG_LEVEL": "warning"}
    process = subprocess.Popen([sys.executable, "-P", "-m", "app", "api"], env=os.environ | more)
    base, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {token}"}
    try:
        with httpx2.Client(base_url=base, headers=headers, timeout=30) as client:
            _wait(lambda: client.get("/readyz").status_code == 200)
            yield client
    finally:
        process.terminate()
        process.wait()
        redis.stop()


def _wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the API did not start")


def latencies(client: httpx2.Client, ask: Callable[[httpx2.Client], httpx2.Response]) -> str:
    """Return the median and the 99th percentile of one request at a time, in milliseconds."""
    took: list[float] = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        answer = ask(client)
        took.append(1000 * (time.perf_counter() - began))
        if answer.status_code >= 300:
            raise SystemExit(f"{answer.request.url} answered {answer.status_code}: {answer.text[:300]}")
    return f"{statistics.median(took):.1f} / {statistics.quantiles(took, n=100)[98]:.1f}"


def measure(url: str, seed: Seed | None) -> dict[str, str]:
    """Migrate, seed and measure one database; return figures by name."""
    migrate(url)
    waiting = range(0)
    if seed is not None:
        asyncio.run(_seed(url, seed))
        waiting = seed.waiting()
    rates = asyncio.run(claim_rates(url, waiting))
    found = {"claim and end, runs/s": f"{statistics.median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})"}
    with api(url) as client:
        made = {"prompt": "x", "planner": "smoke"}
        found["POST /v1/runs, ms"] = latencies(client, lambda c: c.post("/v1/runs", json=made))
        for path in PATHS:
            found[f"GET {path}, ms"] = latencies(client, lambda c, path=path: c.get(path))
    return found


async def _seed(url: str, seed: Seed) -> None:
    db = Database(url)
    await seeded_runs.seed(db, seed)
    await db.close()


def both(name: str, seed: Seed, urls: list[str]) -> list[Row]:
    """Measure an empty and a seeded database of one kind."""
    empty, full = (measure(url, some) for url, some in zip(urls, (None, seed), strict=True))
    rows = [(f"{name}: {what}", empty[what], full[what]) for what in empty]
    for row in rows:
        print(f"  {row[0]:<70} {row[1]:>22} {row[2]:>22}", flush=True)
    return rows


def document(rows: list[Row], seed: Seed, busy: float) -> str:
    """Write docs/benchmarks-backlog.md."""
    table = "\n".join(f"| {what} | {empty} | {full} |" for what, empty, full in rows)
    return f"""# Benchmarks: history and backlog

`make bench WHAT=backlog` measures these on your machine and writes them here: the same work on an
empty database,
and on one with {seed.ended:,} ended and {seed.queued:,} queued runs whose statistics are of a quieter time
(PostgreSQL: analyzed while empty, autovacuum off). What is kept short, and how:
[decision record 24](decisions/0024-one-way-to-each-row.md).

Measured {today()} on: {machine()}. Load of the machine before: {busy:.1f}. Rates: the median
of {ROUNDS} rounds and their spread; latencies: median / 99th percentile of {REQUESTS} requests, in turn.

| what | empty | with history and backlog |
|---|---|---|
{table}
"""


def main() -> None:
    """Measure both databases, print, write."""
    words, busy = [int(word) for word in sys.argv[1:]], os.getloadavg()[0]
    seed = Seed(*(words or (1_000_000, 100_000)), running=1000)
    with tempfile.TemporaryDirectory(prefix="tailrun-bench-") as folder:
        rows = both("SQLite", seed, [f"sqlite:///{folder}/{name}.db" for name in ("empty", "full")])
    server = PostgresServer().start()
    try:
        with postgres_database(server.url) as empty, postgres_database(server.url) as full:
            rows += both("PostgreSQL", seed, [empty, full])
    finally:
        server.close()
    if not words:
        TARGET.write_text(document(rows, seed, busy), encoding="utf-8")


if __name__ == "__main__":
    main()
