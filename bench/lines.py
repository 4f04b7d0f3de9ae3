"""Lines a second from one run's pipe, through the database's one sequence, to its watchers."""

from __future__ import annotations

import asyncio
import time

from stack import Stack
from wire import Wire, watch

WIDTH = 200
LIMIT_S = 60.0
MARK = b'"stream":"stdout"'
PROGRAM = "import sys; w = sys.stdout.write; [w('x' * {width} + '\\n') for _ in range({lines})]"


async def _count(stack: Stack, run_id: str, ready: asyncio.Semaphore) -> tuple[int, float, float]:
    """Read a run's stream to its end; return the lines, and when the first and the last byte came."""
    async with watch(stack, run_id) as reader:
        ready.release()
        lines, carry, first = 0, b"", 0.0
        while piece := await reader.read(1 << 18):
            data = carry + piece
            lines += data.count(MARK)
            if lines and not first:
                first = time.perf_counter()
            # what can't hold a whole mark, so that none is counted twice
            carry = data[-(len(MARK) - 1) :]
        return lines, first, time.perf_counter()


async def deliver(stack: Stack, lines: int, watchers: int) -> list[tuple[str, str]]:
    """Let one run print `lines` lines to `watchers` watchers; check that each had all of them."""
    wire, ready = Wire(stack), asyncio.Semaphore(0)
    argv = ["python", "-c", PROGRAM.format(width=WIDTH, lines=lines)]
    run = await wire.request("POST", "/v1/runs", {"argv": argv, "start": False})
    readers = [asyncio.create_task(_count(stack, run["run_id"], ready)) for _ in range(watchers)]
    for _ in readers:
        await ready.acquire()
    await wire.request("POST", f"/v1/runs/{run['run_id']}/start")
    wire.close()  # the server would, before the lines are through
    async with asyncio.timeout(LIMIT_S):
        seen = await asyncio.gather(*readers)
    ended = await wire.request("GET", f"/v1/runs/{run['run_id']}")
    wire.close()
    if ended["status"] != "succeeded" or {count for count, _, _ in seen} != {lines}:
        raise SystemExit(f"lines are missing: {sorted({c for c, _, _ in seen})} of {lines}; {ended}")
    took = max(last for _, _, last in seen) - min(first for _, first, _ in seen)
    name = f"{watchers} watcher" + ("s" if watchers > 1 else "")
    rate = f"{lines / took:,.0f} lines/s"
    if watchers > 1:
        rate += f"; {lines * watchers / took:,.0f} delivered/s"
    return [(f"{lines:,} lines of {WIDTH} bytes from one run to {name}", rate)]


async def measure(stack: Stack) -> list[tuple[str, str]]:
    """Measure one watcher, then a hundred."""
    worker = stack.processes()["worker"]
    rows = await deliver(stack, 200_000, 1)
    rows += await deliver(stack, 50_000, 100)
    rss = worker.memory_info().rss / 1e6
    return [*rows, ("worker RSS afterwards", f"{rss:.0f} MB")]
