"""Measure Tailrun's queue layer against raw Redis and against its peers; write docs/benchmarks-queue.md.

All in one run on one Redis, in turn, so that ratios mean something on a busy machine; of each rate the best
round counts. `make bench WHAT=queue`; under four minutes once the peers are installed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]

import queue_report  # noqa: E402
import sections  # noqa: E402
from machine import machine  # noqa: E402
from queue_measures import Figures, Site, Wrong, idle, p50_p99, redelivery, rounds, waits  # noqa: E402
from queue_peers import ALL, CACHE, TAILRUN, Agent, Peer, Unavailable  # noqa: E402
from support.servers import RedisServer  # noqa: E402

ROUNDS = int(sys.argv[1]) if sys.argv[1:] else 2


def measure(site: Site) -> dict[Peer, Figures]:
    """Measure everybody who can be had here."""
    figures = {peer: Figures() for peer in ALL if _installed(peer)}
    for turn in range(ROUNDS):
        for number, peer in enumerate(figures):
            rounds(peer, site, number, figures[peer])
            print(f"  {turn + 1}/{ROUNDS} {peer.name:<46} {figures[peer].last()}", flush=True)
    with ExitStack() as stack:
        workers: dict[Peer, Agent] = {}
        urls = {peer: site.url(number) for number, peer in enumerate(figures)}
        for peer, url in urls.items():
            workers[peer] = stack.enter_context(Agent(peer, "work", url))
            workers[peer].ask("go")
        time.sleep(2)
        for peer, url in urls.items():
            waits(peer, workers[peer], url, figures[peer])
            print(f"  idle queue, {peer.name:<46} start after {p50_p99(figures[peer])} ms", flush=True)
        idle(workers, figures)
    figures[TAILRUN].redelivery_s = redelivery(TAILRUN, site.url(len(figures)))
    print(f"  redelivery after kill -9: {figures[TAILRUN].redelivery_s:.1f} s")
    return figures


def _installed(peer: Peer) -> bool:
    try:
        peer.install()
    except Unavailable as error:
        print(f"  without {peer.name}: {error}")
        return False
    return True


def main() -> None:
    """Measure, print, write."""
    began, busy = time.monotonic(), os.getloadavg()[0]
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tailrun-bench-") as folder:
        server = RedisServer(Path(folder), appendonly=False).start()
        assert server.process
        try:
            figures = measure(Site(server.process.pid, server.port))
        except (Wrong, Unavailable) as error:
            raise SystemExit(f"the queue benchmark failed: {error}") from error
        finally:
            server.stop()
    table = queue_report.table(figures)
    print(table)
    queue_report.write(figures, machine(), busy)
    print(f"{sections.TARGET.relative_to(ROOT)} written after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
