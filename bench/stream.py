"""Tailrun's stream beside other servers of streams: bursts, a steady load, idle and stalled watchers.

All in one run, one after the other, each server alone on one core. See `stream_peers.py` for who they are.

    python bench/stream.py            everything, less than four minutes; writes docs/benchmarks-stream.md
    python bench/stream.py --quick    less of it, less than a minute; nothing is written
    python bench/stream.py --only tailrun,limit
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]

from machine import machine, today  # noqa: E402
from stream_peers import PEERS_IN_ORDER, Missing, Peer, Server, install  # noqa: E402
from watchers import Watchers, stalled  # noqa: E402

TARGET = ROOT / "docs" / "benchmarks-stream.md"
CROWDS = (1, 10, 100, 500)
COLUMNS = (
    "burst, k lines/s delivered to 1 / 10 / 100 / 500 watchers",
    "CPU s per 100 k delivered, 100 × 200/s",
    "p50 / p99 ms, 100 × 200/s",
    "p50 / p99 ms, 500 × 200/s",
    "RSS MB, 500 idle",
    "ten watchers beside 20 that never read: speed, memory grown",
)
RATE = 200
CPU_CROWD = 100
BURST_S = 5.0
"""After so many seconds a burst is over, whatever has arrived."""
BUSY = 0.9
"""A client that takes more of its core than this may itself be what was measured."""


@dataclass
class Row:
    """What was measured of one peer."""

    name: str
    versions: str = ""
    burst: list[float] = field(default_factory=list[float])
    cpu: float = 0.0
    latency: dict[int, str] = field(default_factory=dict[int, str])
    idle_mb: float = 0.0
    stalled: str = ""
    busy: float = 0.0
    doubtful: set[int] = field(default_factory=set[int])
    """Crowds for which the clients had nearly all of their core to do."""


def measure(peer: Peer, seconds: float, *, quick: bool) -> Row:
    """Start a peer, put everything through it, and stop it."""
    row = Row(peer.name)
    with ExitStack() as closing:
        server = Server(closing)
        row.versions = peer.start(server)
        for crowd, guess in zip(CROWDS, peer.lines_per_s, strict=True):
            if not quick or crowd in (1, 100):
                _burst(server, row, crowd, max(20, int(guess * seconds / crowd)))
        for crowd in (CPU_CROWD, 500):
            _steady(server, row, crowd, seconds * 2)
        _stalled(server, row, 2_000 if quick else 20_000)
    return row


def _burst(server: Server, row: Row, crowd: int, lines: int) -> None:
    """Let the feeder send as fast as it can; count what arrives at everybody."""
    server.prepare()
    with Watchers(crowd, server.port, server.request()) as watchers:
        time.sleep(0.2)  # subscriptions behind the answers' first bytes
        server.say(f"burst {lines}")
        took = watchers.read(lines, timeout_s=BURST_S)
        got = sum(watchers.lines)
        row.burst.append(got / took)
        row.busy = max(row.busy, watchers.busy)
        if watchers.busy > BUSY:
            row.doubtful.add(crowd)
        share = got / (lines * crowd)
        print(
            f"    {crowd:>3} watchers: {got / took / 1000:>8,.0f} k lines/s, {took:.1f} s, clients "
            f"{100 * watchers.busy:.0f} % busy{'' if share == 1 else f', {100 * share:.0f} % arrived'}",
            flush=True,
        )
    server.wait()


def _steady(server: Server, row: Row, crowd: int, seconds: float) -> None:
    """Send 200 lines a second one by one; take memory before, and CPU and latencies."""
    server.prepare()
    lines = int(RATE * seconds)
    with Watchers(crowd, server.port, server.request(), timed=50) as watchers:
        time.sleep(0.5)
        row.idle_mb = server.resident_mb()
        used = server.cpu_s()
        server.say(f"steady {RATE} {seconds}")
        watchers.read(lines, timeout_s=seconds + 3)
        used = server.cpu_s() - used
        got = sum(watchers.lines)
        row.busy = max(row.busy, watchers.busy)
    server.wait()
    row.latency[crowd] = _latency(watchers.latencies, got / (lines * crowd))
    cpu = 100_000 * used / got
    row.cpu = cpu if crowd == CPU_CROWD else row.cpu
    print(
        f"    {crowd} x {RATE}/s: {row.latency[crowd]} ms, {cpu:.2f} CPU s per 100,000 delivered, "
        f"clients {100 * watchers.busy:.0f} % busy",
        flush=True,
    )


def _latency(taken: list[float], delivered: float) -> str:
    if delivered < 0.99 or not taken:
        return f"{100 * delivered:.0f} % in time"
    p50, p99 = (sorted(taken)[int(share * (len(taken) - 1))] for share in (0.5, 0.99))
    return f"{p50:.1f} / {p99:.1f}"


def _stalled(server: Server, row: Row, lines: int) -> None:
    """Twenty watchers never read; ten others do. What does that cost, and whom?"""
    server.prepare()
    sockets = stalled(20, server.port, server.request())
    with Watchers(10, server.port, server.request()) as watchers:
        time.sleep(0.5)
        before = server.rss_mb()
        server.say(f"burst {lines}")
        took = watchers.read(lines, timeout_s=BURST_S)
        got = sum(watchers.lines)
        grown = server.rss_mb() - before
        row.stalled = f"{got / took / 1000:,.0f} k/s, +{max(0.0, grown):,.0f} MB"
        print(f"    20 stalled: the ten others {row.stalled}", flush=True)
    for sock in sockets:
        sock.close()
    server.wait()


def cells(row: Row) -> list[str]:
    """Return a row of the table."""
    burst = " / ".join(
        f"{'≥ ' if crowd in row.doubtful else ''}{rate / 1000:,.0f}"
        for crowd, rate in zip(CROWDS, row.burst, strict=False)
    )
    latencies = [row.latency[crowd] for crowd in sorted(row.latency)]
    return [row.name, burst, f"{row.cpu:.2f}", *latencies, f"{row.idle_mb:.0f}", row.stalled]


def ratios(rows: list[Row]) -> str:
    """Say how many times the others' figure Tailrun's is."""
    ours = next(row for row in rows if row.name.startswith("**"))
    out: list[str] = []
    for row in rows:
        if row is not ours:
            bursts = [_times(a / b) for a, b in zip(ours.burst, row.burst, strict=True)]
            out.append(f"| {row.name} | {' / '.join(bursts)} | {_times(row.cpu / ours.cpu)} |")
    return "\n".join(out)


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"


def document(rows: list[Row], missing: list[str], busy: float, took: float) -> str:
    """Write docs/benchmarks-stream.md."""
    table = "\n".join(f"| {' | '.join(cells(row))} |" for row in rows)
    lost = "".join(f"\nNot measured: {reason}.\n" for reason in missing)
    names = ", ".join('"{}"'.format(re.split(r"[:(,]", row.name)[0].strip("* ")) for row in rows)
    bars = ", ".join(f"{row.burst[2] / 1000:.0f}" for row in rows)
    return f"""# Benchmark: streams to many watchers

`make bench WHAT=stream` measures this and writes it here: each server alone on one core, one after
the other in
one run; what feeds it, Redis and the watchers share the rest of the machine. Lines have 200 bytes. Tailrun is
the real thing: `tailrun api` as a process, a token checked, SQLite and Redis behind it, its lines published
through `app.redis.publisher` as a worker does it, each inside of an event's JSON (twice the bytes of the
others, which send the bare line). Absolute figures move with the machine; compare within the table.

Measured {today()} in {took:.0f} s on: {machine()}; {"; ".join(row.versions for row in rows)}.
Load of the machine before: {busy:.1f}.
{lost}
| | {" | ".join(COLUMNS)} |
|---|{"---|" * len(COLUMNS)}
{table}

Tailrun as a multiple of the others:

| | burst to 1 / 10 / 100 / 500 | times less CPU, 100 × 200/s |
|---|---|---|
{ratios(rows)}

```mermaid
xychart-beta
    title "Burst to 100 watchers, k lines/s delivered"
    x-axis [{names}]
    y-axis "k lines/s"
    bar [{bars}]
```

How it is taken:

- **Burst**: the feeder sends as fast as the server takes lines (or Redis, where one is between), until
  every watcher has counted all of them.
- **CPU**: of the server's processes, over a steady 200 lines/s to each of 100 watchers.
- **p50 / p99**: from before a line is sent to when the watcher has read it, of 50 of the watchers.
- **RSS**: resident memory of the server with 500 open, silent streams, after the bursts.
- **Stalled**: 20 connections with the smallest receive buffers never read, ten others do. The memory that
  grew is the server's and, where it has one, its Redis's.
- **The clients are not the bottleneck**: one process with epoll and one buffer counts one byte per line; its
  own CPU is taken all along. At most {100 * max(row.busy for row in rows):.0f} % of its core were used;
  a burst in which it was more than {100 * BUSY:.0f} % is marked ≥, for the server may be able to do more.
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a look in less than a minute; writes nothing")
    parser.add_argument(
        "--only", default="", help="some of limit, nchan, better_sse, own_sse, naive, tailrun"
    )
    options = parser.parse_args()
    began, busy = time.monotonic(), os.getloadavg()[0]
    install()
    print(machine())
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("this needs two cores: one for the server, the rest for what drives it")
    others = sorted(os.sched_getaffinity(0))[1:]
    os.sched_setaffinity(0, others)
    rows, missing = list[Row](), list[str]()
    for peer in PEERS_IN_ORDER:
        if options.only and peer.start.__name__ not in options.only.split(","):
            continue
        print(f"  {peer.name}", flush=True)
        try:
            rows.append(measure(peer, 0.3 if options.quick else 1.2, quick=options.quick))
        except Missing as reason:
            print(f"NOT MEASURED: {peer.name}: {reason}", file=sys.stderr, flush=True)
            missing.append(f"{peer.name} ({reason})")
    for row in rows:
        print("  " + " | ".join(cells(row)))
    if not options.quick and not options.only:
        TARGET.write_text(document(rows, missing, busy, time.monotonic() - began), encoding="utf-8")
        print(f"{TARGET.relative_to(ROOT)} written")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
