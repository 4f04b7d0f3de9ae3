"""What an idle system costs: CPU and resident memory of each process."""

from __future__ import annotations

import asyncio

from stack import Stack

SETTLE_S = 2.0
SECONDS = 10.0


async def measure(stack: Stack) -> list[tuple[str, str]]:
    """Let the system stand for some seconds with nothing to do."""
    await asyncio.sleep(SETTLE_S)
    before = stack.cpu_s()
    await asyncio.sleep(SECONDS)
    after = stack.cpu_s()
    rows: list[tuple[str, str]] = []
    for name, process in sorted(stack.processes().items()):
        share = 100 * (after[name] - before[name]) / SECONDS
        rows.append((f"idle {name}: CPU, RSS", f"{share:.1f} %, {process.memory_info().rss / 1e6:.0f} MB"))
    return rows
