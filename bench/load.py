"""One mixed, bounded workload against a Tailrun: submitters, and watchers that follow runs to the end.

`make bench WHAT=load` starts a stack of its own; `make bench WHAT=load API=https://… TOKEN=…`
loads the one that is there.
LOAD_SECONDS (10) is how long runs are submitted, LOAD_SUBMITTERS (8) over how many connections,
LOAD_WATCHERS (4) how many others submit a run that prints, follow it to its end and begin again.
Figures of a machine that does something else besides are not comparable; the load generator is one process.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "bench")]

import httpx2  # noqa: E402
import orjson  # noqa: E402
from stack import Stack  # noqa: E402

LINES = 200
SMALL = {"steps": [{"tool": "file_write", "args": {"path": "out.txt", "content": "load"}}]}
LOUD = {"argv": ["sh", "-c", f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; done"]}
FINISH_S = 120.0
_MOST = {"LOAD_SECONDS": 300, "LOAD_SUBMITTERS": 200, "LOAD_WATCHERS": 500}


@dataclass
class Tally:
    """What was seen; times in seconds."""

    submitted: int = 0
    refused: int = 0
    followed: int = 0
    lines: int = 0
    broken: int = 0
    submits: list[float] = field(default_factory=list[float])
    first_lines: list[float] = field(default_factory=list[float])


def setting(name: str, default: int) -> int:
    """Read a bound of the workload; over the most that makes sense it ends the program."""
    value = int(os.environ.get(name) or default)
    if not 0 <= value <= _MOST[name]:
        raise SystemExit(f"{name} is at most {_MOST[name]}")
    return value


async def submit(client: httpx2.AsyncClient, body: dict[str, Any], tally: Tally) -> str | None:
    """POST a run; None if it is refused because there is too much (429, 503)."""
    began = time.perf_counter()
    answer = await client.post("/v1/runs", content=orjson.dumps(body))
    tally.submits.append(time.perf_counter() - began)
    if answer.status_code in {429, 503}:
        tally.refused += 1
        await asyncio.sleep(min(5.0, float(answer.headers.get("retry-after", 1))))
        return None
    if answer.status_code != 201:
        raise SystemExit(f"POST /v1/runs: {answer.status_code} {answer.text[:300]}")
    tally.submitted += 1
    return str(answer.json()["run_id"])


async def submitter(client: httpx2.AsyncClient, until: float, tally: Tally) -> None:
    """Submit small runs, one after the other."""
    while time.perf_counter() < until:
        await submit(client, SMALL, tally)


async def watcher(client: httpx2.AsyncClient, until: float, tally: Tally) -> None:
    """Submit a run that prints, follow it to its end, check that nothing is missing, begin again."""
    while time.perf_counter() < until:
        began = time.perf_counter()
        run_id = await submit(client, LOUD, tally)
        if run_id is not None:
            await follow(client, run_id, began, tally)


async def follow(client: httpx2.AsyncClient, run_id: str, began: float, tally: Tally) -> None:
    """Read a stream to its end; a hole in `seq`, another number of lines or no end is counted as broken."""
    last, lines, status = 0, 0, ""
    path = f"/v1/runs/{run_id}/stream?format=ndjson"
    async with client.stream("GET", path, timeout=FINISH_S) as answer:
        async for text in answer.aiter_lines():
            if not text.startswith("{"):
                continue
            event = orjson.loads(text)
            tally.broken += event["seq"] != last + 1
            last = event["seq"]
            if event["type"] == "log" and event["stream"] == "stdout":
                lines += 1
                if lines == 1:
                    tally.first_lines.append(time.perf_counter() - began)
            status = event["status"] if event["type"] == "end" else status
    tally.followed += 1
    tally.lines += lines
    tally.broken += status != "succeeded" or lines != LINES


async def settled(client: httpx2.AsyncClient) -> None:
    """Wait until no run of ours waits or runs."""
    deadline = time.perf_counter() + FINISH_S
    for status in ("queued", "running"):
        while (await client.get("/v1/runs", params={"status": status, "limit": 1})).json()["items"]:
            if time.perf_counter() > deadline:
                raise SystemExit(f"runs are still {status} after {FINISH_S:.0f} s")
            await asyncio.sleep(0.2)


async def load(url: str, token: str) -> tuple[Tally, float, float]:
    """Carry the workload out; return it with the seconds until all was submitted, and ended."""
    seconds, tally = setting("LOAD_SECONDS", 10), Tally()
    submitters, watchers = setting("LOAD_SUBMITTERS", 8), setting("LOAD_WATCHERS", 4)
    headers = {"Authorization": f"Bearer {token}"}
    limits = httpx2.Limits(max_connections=submitters + 2 * watchers + 2)
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=60, limits=limits) as client:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(submitters):
                group.create_task(submitter(client, began + seconds, tally))
            for _ in range(watchers):
                group.create_task(watcher(client, began + seconds, tally))
        submitted_s = time.perf_counter() - began
        await settled(client)
        return tally, submitted_s, time.perf_counter() - began


def quantiles(times: list[float]) -> str:
    """Return p50 and p99 in milliseconds."""
    if not times:
        return "–"
    ordered = sorted(times)
    return f"{1000 * ordered[len(ordered) // 2]:.1f} / {1000 * ordered[int(len(ordered) * 0.99)]:.1f} ms"


def report(tally: Tally, submitted_s: float, ended_s: float) -> str:
    """Write the figures, one a line."""
    return f"""  runs submitted                        {tally.submitted} in {submitted_s:.1f} s, {tally.submitted / submitted_s:.0f} /s
  runs ended                            {tally.submitted / ended_s:.0f} /s
  lines followed                        {tally.lines} of {tally.followed} runs, {tally.lines / submitted_s:.0f} /s
  submit, p50 / p99                     {quantiles(tally.submits)}
  submit → first line, p50 / p99        {quantiles(tally.first_lines)}
  refused (429, 503), tried again       {tally.refused}
  streams with something missing        {tally.broken}"""  # noqa: E501 - as it is shown


def main() -> int:
    """Load the system that API and TOKEN name, or one of our own."""
    url, token = os.environ.get("API", ""), os.environ.get("TOKEN", "")
    if url and not token:
        raise SystemExit("TOKEN is not set")
    with nullcontext() if url else Stack() as own:
        if own is not None:
            url, token = own.url, own.token
        print(f"Loading {url} for {setting('LOAD_SECONDS', 10)} s …", flush=True)
        tally, submitted_s, ended_s = asyncio.run(load(url.rstrip("/"), token))
    print(report(tally, submitted_s, ended_s))
    return 1 if tally.broken else 0


if __name__ == "__main__":
    sys.exit(main())
