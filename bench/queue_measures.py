"""What is measured of each peer: sending, draining, waiting on an idle queue, idling, redelivery."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import redis
from latency import percentile
from queue_peers import Agent, Peer, cpu_s

SINGLE = 1_000
PACED, PAUSE_S = 200, 0.005
IDLE_S = 10.0
DRAIN_LIMIT_S = 30.0
REDELIVERY_LIMIT_S = 15.0


class Wrong(Exception):
    """A job was lost, or came twice."""


@dataclass(frozen=True, slots=True)
class Site:
    """The Redis that all share, one database each."""

    redis_pid: int
    port: int

    def url(self, number: int) -> str:
        """Return the URL of a peer's database, emptied."""
        with redis.Redis(port=self.port, db=number) as client:
            client.flushdb()
        return f"redis://127.0.0.1:{self.port}/{number}"


@dataclass(slots=True)
class Figures:
    """What was measured of one peer: rates a second, one of each round; None: not measured."""

    versions: str = ""
    single: list[float] = field(default_factory=list)
    bulk: list[float] = field(default_factory=list)
    drain: list[float] = field(default_factory=list)
    drain_two: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    waits_ms: list[float] = field(default_factory=list)
    idle_percent: float | None = None
    rss_mb: float | None = None
    redelivery_s: float | None = None

    def last(self) -> str:
        """Describe the last round."""
        sent = f"enqueue {self.single[-1]:>8,.0f}  bulk {self.bulk[-1]:>9,.0f}"
        drained = f"drain {self.drain[-1]:>8,.0f}  by two {self.drain_two[-1]:>8,.0f} /s"
        return f"{sent}  {drained}  {self.cpu_us[-1]:>6.1f} µs"


def rounds(peer: Peer, site: Site, number: int, figures: Figures) -> None:
    """Send one by one and in bulk, drain with one worker, then with two."""
    url = site.url(number)
    with Agent(peer, "produce", url) as producer:
        figures.single.append(SINGLE / producer.ask(f"single 0 {SINGLE}"))
        url = site.url(number)
        figures.bulk.append(peer.jobs / producer.ask(f"bulk 0 {peer.jobs}"))
        with Agent(peer, "work", url) as worker:
            figures.versions = worker.versions
            before = worker.cpu_s() + cpu_s(site.redis_pid)
            figures.drain.append(drain([worker], peer.jobs))
            used = worker.cpu_s() + cpu_s(site.redis_pid) - before
            figures.cpu_us.append(1e6 * used / peer.jobs)
        url = site.url(number)
        producer.ask(f"bulk 0 {peer.jobs}")
        with Agent(peer, "work", url) as one, Agent(peer, "work", url) as two:
            figures.drain_two.append(drain([one, two], peer.jobs))


def drain(workers: Sequence[Agent], jobs: int) -> float:
    """Let workers empty the queue; return jobs a second from the first one begun to the last."""
    for worker in workers:
        worker.ask("go")
    deadline = time.monotonic() + DRAIN_LIMIT_S
    counts = [worker.ask("count") for worker in workers]
    while sum(count["count"] for count in counts) < jobs:
        if time.monotonic() > deadline:
            raise Wrong(f"{sum(count['count'] for count in counts)} of {jobs} jobs came")
        time.sleep(0.05)
        counts = [worker.ask("count") for worker in workers]
    numbers = [number for worker in workers for number in worker.ask("numbers")]
    if sorted(numbers) != list(range(jobs)):
        raise Wrong(f"{jobs} jobs sent, {len(numbers)} came, {len(set(numbers))} of them distinct")
    first = min(count["first_ns"] for count in counts if count["count"])
    return (jobs - 1) / (max(count["last_ns"] for count in counts) - first) * 1e9


def waits(peer: Peer, worker: Agent, url: str, figures: Figures) -> None:
    """Send jobs one at a time to a worker that has nothing else to do."""
    with Agent(peer, "produce", url) as producer:
        producer.ask(f"paced 0 {PACED} {PAUSE_S}")
        deadline = time.monotonic() + 5
        while len(taken := worker.ask("waits")) < PACED and time.monotonic() < deadline:
            time.sleep(0.05)
    if len(taken) != PACED:
        raise Wrong(f"{len(taken)} of {PACED} single jobs came")
    figures.waits_ms = [wait / 1e6 for wait in taken]


def idle(workers: dict[Peer, Agent], figures: dict[Peer, Figures]) -> None:
    """Let all workers stand beside each other with nothing to do."""
    before = {peer: worker.cpu_s() for peer, worker in workers.items()}
    time.sleep(IDLE_S)
    for peer, worker in workers.items():
        figures[peer].idle_percent = 100 * (worker.cpu_s() - before[peer]) / IDLE_S
        figures[peer].rss_mb = worker.rss_mb()


def redelivery(peer: Peer, url: str) -> float:
    """Kill -9 the worker that has a job; return the seconds until another one begins it."""
    with (
        Agent(peer, "produce", url) as producer,
        Agent(peer, "work", url) as one,
        Agent(peer, "work", url) as two,
    ):
        for worker in (one, two):
            worker.ask("go")
        time.sleep(2)  # leases and ticks run
        producer.ask("hold")
        deadline = time.monotonic() + REDELIVERY_LIMIT_S
        while not (held := {worker: worker.ask("held") for worker in (one, two)})[one] and not held[two]:
            _in_time(deadline)
        owner, other = (one, two) if held[one] else (two, one)
        killed = time.monotonic_ns()
        owner.kill()
        while not (begun := other.ask("held")):
            _in_time(deadline)
        return (begun - killed) / 1e9


def p50_p99(figures: Figures) -> str:
    """Format the waits."""
    return f"{percentile(figures.waits_ms, 0.5):.2f} / {percentile(figures.waits_ms, 0.99):.2f}"


def _in_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise Wrong(f"not redelivered within {REDELIVERY_LIMIT_S:.0f} s")
    time.sleep(0.02)
