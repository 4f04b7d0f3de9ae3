"""Whole runs a second: POST → claimed → one `file_write` step → end committed.

Run as a program (`make bench WHAT=runs`) it measures on PostgreSQL and writes its part of the document.
What counts is the CPU of the system alone (API, worker, Redis, PostgreSQL, of /proc): the load generator
shares the cores with it, and so may other programs, so the wall clock says little on a busy machine.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path += [str(ROOT), str(ROOT / "tests")]

import psutil  # noqa: E402
import sections  # noqa: E402
from latency import FILE  # noqa: E402
from machine import machine, today  # noqa: E402
from stack import Stack  # noqa: E402
from wire import Wire  # noqa: E402

POSTERS = 16
SECONDS = 8.0
FINISH_S = 60.0
OPEN = ("queued", "running")
WARM_UP = 200
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """What some runs took. `cpu_s` by process; `posted_s` until the last POST was answered."""

    made: int
    took_s: float
    posted_s: float
    cpu_s: dict[str, float]

    def per_run(self) -> str:
        """Say how many milliseconds of CPU each process spent on a run."""
        return ", ".join(f"{name} {1000 * s / self.made:.2f}" for name, s in sorted(self.cpu_s.items()))

    def total_ms(self) -> float:
        """Return the milliseconds of CPU of a run, all processes together."""
        return 1000 * sum(self.cpu_s.values()) / self.made

    def __str__(self) -> str:
        rate = f"{self.made} runs in {self.took_s:.1f} s, {self.made / self.took_s:.0f} /s"
        return f"{rate}; CPU a run: {self.per_run()} ms, together {self.total_ms():.2f} ms"


async def _post(stack: Stack, count: int, until: float) -> int:
    wire, made = Wire(stack), 0
    while made < count and time.perf_counter() < until:
        await wire.request("POST", "/v1/runs", FILE)
        made += 1
    wire.close()
    return made


async def _finished(wire: Wire) -> None:
    deadline = time.perf_counter() + FINISH_S
    for status in OPEN:
        while (await wire.request("GET", f"/v1/runs?status={status}&limit=1"))["items"]:
            if time.perf_counter() > deadline:
                raise SystemExit(f"runs are still {status} after {FINISH_S:.0f} s")
            await asyncio.sleep(0.1)


async def load(stack: Stack, *, seconds: float = SECONDS, database_pid: int | None = None) -> Cost:
    """Post for some seconds from several connections, then wait until every run has ended."""
    wire = Wire(stack)
    await asyncio.gather(*(_post(stack, WARM_UP // POSTERS, float("inf")) for _ in range(POSTERS)))
    await _finished(wire)
    wire.close()  # the server would, while nothing is asked here
    before, began = _cpu(stack, database_pid), time.perf_counter()
    made = sum(await asyncio.gather(*(_post(stack, 1 << 30, began + seconds) for _ in range(POSTERS))))
    posted = time.perf_counter() - began
    await _finished(wire)
    took = time.perf_counter() - began
    failed = await wire.request("GET", "/v1/runs?status=failed&limit=1")
    wire.close()
    if failed["items"]:
        raise SystemExit(f"a run failed: {failed['items'][0]}")
    after = _cpu(stack, database_pid)
    return Cost(made, took, posted, {name: after[name] - before[name] for name in after})


def _cpu(stack: Stack, database_pid: int | None) -> dict[str, float]:
    used = stack.cpu_s()
    if database_pid is not None:
        times = [process.cpu_times() for process in psutil.Process(database_pid).children(recursive=True)]
        used["postgresql"] = sum(t.user + t.system for t in times)
    return used


async def measure(stack: Stack, database: str) -> list[tuple[str, str]]:
    """Return the rows of a table."""
    cost = await load(stack)
    return [
        (
            f"whole runs on {database} ({cost.made} runs, {POSTERS} connections)",
            f"{cost.made / cost.took_s:.0f} /s",
        ),
        (f"submitted meanwhile on {database}", f"{cost.made / cost.posted_s:.0f} /s"),
        (f"CPU a run on {database}", f"{cost.per_run()} ms"),
    ]


def main() -> None:
    """Measure on PostgreSQL, print, write. Settings may follow as words: `WORKER_CONCURRENCY=20`."""
    from support.postgres_server import PostgresServer  # noqa: PLC0415 - tests/ is on the path only here

    busy, costs = os.getloadavg()[0], []
    server = PostgresServer().start()
    try:
        with Stack(DATABASE_URL=server.url, **dict(word.split("=") for word in sys.argv[1:])) as stack:
            for _ in range(ROUNDS):
                costs.append(asyncio.run(load(stack, database_pid=server.pid)))
                print(costs[-1], flush=True)
    finally:
        server.close()
    if not sys.argv[1:]:
        sections.replace("runs", report(min(costs, key=Cost.total_ms), busy))


def report(cost: Cost, busy: float) -> str:
    """Return the section of the document."""
    each = "\n".join(f"| {name} | {1000 * s / cost.made:.2f} |" for name, s in sorted(cost.cpu_s.items()))
    return f"""Measured {today()} on: {machine()}; the cheapest of {ROUNDS} rounds of
{SECONDS:.0f} s with {POSTERS} connections. Load of the machine before: {busy:.1f}.

| CPU of a run, user + system | ms |
|---|---|
{each}
| together | **{cost.total_ms():.2f}** |

- Two cores of their own: {2000 / cost.total_ms():.0f} runs/s at most.
- By the clock, load generator and all others on the same cores: {cost.made / cost.took_s:.0f} runs/s,
  {cost.made / cost.posted_s:.0f} /s submitted meanwhile."""


if __name__ == "__main__":
    main()
