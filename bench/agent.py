"""What an agent costs beside its model: time a turn, delay of its words, CPU and memory while models write.

The model is a scripted server of the tests over real HTTP, in this process. `make bench WHAT=agent`; about
two minutes; writes docs/benchmarks-agent.md.

    python bench/agent.py --quick    less of it; nothing is written
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]

from latency import percentile  # noqa: E402
from machine import machine, today  # noqa: E402
from stack import Stack  # noqa: E402
from support.postgres_server import PostgresServer  # noqa: E402
from support.scripted_model import Answer, Repeat, ScriptedModel, chat_reply, chunk  # noqa: E402
from wire import Wire, read_until, watch  # noqa: E402

TARGET = ROOT / "docs" / "benchmarks-agent.md"
MODEL_WORDS = b'"stream":"model"'
TURNS, RUNS = 40, 5
"""Calls of a tool in a run, and such runs one after the other, with as many first words."""
TOKENS_A_SECOND = 20
END_S = 60.0


@dataclass(frozen=True, slots=True)
class Crowd:
    """What so many agents took while their models wrote: cores of each process, megabytes of the worker."""

    agents: int
    cores: dict[str, float]
    idle_mb: float
    busy_mb: float

    @property
    def kib_each(self) -> float:
        """KiB of the worker's memory an agent."""
        return (self.busy_mb - self.idle_mb) * 1e6 / 1024 / self.agents


async def _run(wire: Wire, prompt: str = "Work.") -> str:
    body = {"prompt": prompt, "agent": {"budget": {"calls": 1_000, "tool_calls": 1_000}}}
    return (await wire.request("POST", "/v1/runs", body))["run_id"]


async def _ended(stack: Stack, run_id: str) -> None:
    wire, deadline = Wire(stack), time.monotonic() + END_S
    while (run := await wire.request("GET", f"/v1/runs/{run_id}"))["status"] != "succeeded":
        if run["status"] == "failed" or time.monotonic() > deadline:
            raise SystemExit(f"the run did not succeed: {run}")
        await asyncio.sleep(0.05)
    wire.close()


async def turns(stack: Stack, model: ScriptedModel, runs: int) -> list[float]:
    """Return the milliseconds from the last byte of a reply to the next request: commits and a file tool."""
    taken: list[float] = []
    for number in range(runs + 1):
        begun = len(model.asked)
        writes = (json.dumps({"path": "note.txt", "content": str(n)}) for n in range(TURNS))
        replies = [chat_reply("So.", [(f"call{n:05}", "file_write", args)]) for n, args in enumerate(writes)]
        model.script(*map(Answer, replies), Answer(chat_reply("Done.")))
        await _ended(stack, await _run(Wire(stack)))
        if number:
            asked = model.asked[begun:]
            taken += [1000 * (later.came_at - earlier.ended_at) for earlier, later in pairwise(asked)]
    return taken


async def first_words(stack: Stack, model: ScriptedModel, runs: int) -> list[float]:
    """Return the milliseconds from the first piece of a reply to a watcher who has its words."""
    taken: list[float] = []
    wire = Wire(stack)
    for number in range(runs + 2):
        begun = len(model.asked)
        pieces = [Repeat(chunk({"content": "word "}), 0.02, 20), chat_reply("The end.")]
        model.script(Answer(*pieces))
        run_id = await _run(wire)
        async with watch(stack, run_id) as reader:
            await read_until(reader, MODEL_WORDS)
            seen = time.perf_counter()
            await reader.read()
        if number > 1:
            taken.append(1000 * (seen - model.asked[begun].first_at))
    wire.close()
    return taken


async def crowd(stack: Stack, model: ScriptedModel, agents: int, seconds: float) -> Crowd:
    """Let so many models write at once, 20 tokens a second each."""
    worker = stack.processes()["worker"]
    idle = worker.memory_info().rss / 1e6
    writes = Repeat(chunk({"content": "token "}), 1 / TOKENS_A_SECOND, int(seconds * 3 * TOKENS_A_SECOND))
    model.script(Answer(writes, chat_reply("The end.")))
    wire, begun = Wire(stack), len(model.asked)
    ids = [await _run(wire) for _ in range(agents)]
    deadline = time.monotonic() + END_S
    while sum(1 for asked in model.asked[begun:] if asked.first_at) < agents:
        if time.monotonic() > deadline:
            raise SystemExit(f"only {len(model.asked) - begun} of {agents} agents have called their model")
        await asyncio.sleep(0.05)
    before, since = stack.cpu_s(), time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - since
    used = {name: (cpu - before[name]) / took for name, cpu in stack.cpu_s().items()}
    busy = worker.memory_info().rss / 1e6
    wire.close()  # the server has, in so many seconds without a request
    for run_id in ids:
        await wire.request("POST", f"/v1/runs/{run_id}/cancel")
    wire.close()
    return Crowd(agents, used, idle, busy)


def measure(database: str, *, quick: bool) -> list[str]:
    """Measure all on a fresh system; return the cells of its row."""
    with ExitStack() as closing:
        model = ScriptedModel()
        closing.callback(model.close)
        agents, runs = (50, 1) if quick else (300, RUNS)
        settings = {
            "LLM_URL": model.url,
            "LLM_KEY": "key-of-the-bench",
            "LLM_MODEL": "scripted",
            "LLM_CONCURRENCY": str(agents),
            "WORKER_AGENTS": str(agents),
            "USER_BACKLOG_MAX": "10000",
            "AGENT_MAX_CALLS": "1000",
            "AGENT_MAX_TOOL_CALLS": "1000",
        }
        if database == "PostgreSQL":
            server = PostgresServer().start()
            closing.callback(server.close)
            settings["DATABASE_URL"] = server.url
        stack = closing.enter_context(Stack(**settings))
        own = asyncio.run(turns(stack, model, runs))
        words = asyncio.run(first_words(stack, model, 10 if quick else 60))
        many = asyncio.run(crowd(stack, model, agents, 3 if quick else 10))
    cores = " / ".join(f"{many.cores[name]:.2f}" for name in ("worker", "api", "redis"))
    row = [
        database,
        f"{percentile(own, 0.5):.1f} / {percentile(own, 0.99):.1f}",
        f"{percentile(words, 0.5):.1f} / {percentile(words, 0.99):.1f}",
        f"{many.agents}: {cores}",
        f"{many.kib_each:.0f}",
    ]
    print("  " + " | ".join(row), flush=True)
    return row


COLUMNS = (
    "database",
    "own time a turn, p50 / p99 ms",
    "model's first token → watcher, p50 / p99 ms",
    "agents at 20 tokens/s each: cores of worker / API / Redis",
    "KiB of the worker an agent",
)


def document(rows: list[list[str]], busy: float) -> str:
    """Write docs/benchmarks-agent.md."""
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""# Benchmark: what an agent costs beside its model

`make bench WHAT=agent` measures this and writes it here: one API, one worker and an embedded Redis as real
processes, and a model's server over real HTTP, which says what it is told
([scripted_model.py](../tests/support/scripted_model.py)). Load, server and system share the machine. Absolute
figures move with it.

Measured {today()} on: {machine()}. Load of the machine before: {busy:.1f}.

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}
{table}

- **Own time a turn**: from the last byte of a reply to the arrival of the next request. In between are two
  commits (the reply with its calls; the tool's end with the next call) and a `file_write`. {RUNS} runs of
  {TURNS} turns.
- **First token**: from the server's first piece to a watcher over SSE who has it, while the model goes on
  writing.
- **Many agents**: each model writes {TOKENS_A_SECOND} tokens a second for ten seconds; nobody watches. Of
  each agent's words ten rows a second are written at most.
- **Memory**: what the worker grew by, divided by the agents, their connections to the model included.
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a look in less than a minute; writes nothing")
    quick: bool = parser.parse_args().quick
    busy = os.getloadavg()[0]
    print(machine())
    rows = [measure(name, quick=quick) for name in (("SQLite",) if quick else ("SQLite", "PostgreSQL"))]
    if not quick:
        TARGET.write_text(document(rows, busy), encoding="utf-8")
        print(f"{TARGET.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
