"""Whole runs a second: POST → claimed → one `file_write` step → end committed."""

from __future__ import annotations

import asyncio
import time

from latency import FILE
from stack import Stack
from wire import Wire

POSTERS = 16
SECONDS = 8.0
FINISH_S = 60.0
OPEN = ("queued", "running")


async def _post(stack: Stack, until: float) -> int:
    wire, made = Wire(stack), 0
    while time.perf_counter() < until:
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
            await asyncio.sleep(0.05)


async def measure(stack: Stack, database: str) -> list[tuple[str, str]]:
    """Post for some seconds from several connections, then wait until every run has ended."""
    wire, before = Wire(stack), stack.cpu_s()
    began = time.perf_counter()
    made = sum(await asyncio.gather(*(_post(stack, began + SECONDS) for _ in range(POSTERS))))
    posted = time.perf_counter() - began
    await _finished(wire)
    took = time.perf_counter() - began
    failed = await wire.request("GET", "/v1/runs?status=failed&limit=1")
    wire.close()
    if failed["items"]:
        raise SystemExit(f"a run failed: {failed['items'][0]}")
    used = {name: after - before[name] for name, after in stack.cpu_s().items()}
    cost = ", ".join(f"{name} {1000 * s / made:.2f}" for name, s in sorted(used.items()))
    return [
        (f"whole runs on {database} ({made} runs, {POSTERS} connections)", f"{made / took:.0f} /s"),
        (f"submitted meanwhile on {database}", f"{made / posted:.0f} /s"),
        (f"CPU a run on {database}", f"{cost} ms"),
    ]
