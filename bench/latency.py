"""Submit → first line at the watcher, one run at a time on an idle system."""

from __future__ import annotations

import time
from typing import Any

from stack import Stack
from wire import Wire, read_until, watch

WARM_UP = 10
STEP = b'"type":"step"'
STDOUT = b'"stream":"stdout"'

FILE = {"steps": [{"tool": "file_write", "args": {"path": "a.txt", "content": "hello"}}]}
SHELL = {"steps": [{"tool": "shell", "args": {"command": "echo hello"}}]}


def percentile(values: list[float], share: float) -> float:
    """Return the value that `share` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def first_line(stack: Stack, body: dict[str, Any], word: bytes, count: int) -> list[float]:
    """Return the milliseconds from before the POST to when a watcher has read `word`, per run."""
    wire, taken = Wire(stack), []
    for number in range(WARM_UP + count):
        began = time.perf_counter()
        run = await wire.request("POST", "/v1/runs", body)
        async with watch(stack, run["run_id"]) as reader:
            await read_until(reader, word)
            elapsed = (time.perf_counter() - began) * 1000
            await reader.read()  # to the end: the next run starts on an idle system
        if number >= WARM_UP:
            taken.append(elapsed)
    wire.close()
    return taken


async def measure(stack: Stack) -> list[tuple[str, str]]:
    """Measure a run without and one with a program."""
    rows: list[tuple[str, str]] = []
    for name, body, word, count in (
        ("submit → first step at the watcher (`file_write`)", FILE, STEP, 200),
        ("submit → first line of a program at the watcher (`shell`, `echo`)", SHELL, STDOUT, 100),
    ):
        taken = await first_line(stack, body, word, count)
        p50, p99 = percentile(taken, 0.5), percentile(taken, 0.99)
        rows.append((f"{name}, p50 / p99 of {count}", f"{p50:.1f} / {p99:.1f} ms"))
    return rows
