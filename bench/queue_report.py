"""The table of the queue benchmark, and its section of docs/benchmarks-queue.md."""

from __future__ import annotations

from collections.abc import Mapping

import sections
from machine import today
from queue_measures import Figures, p50_p99
from queue_peers import BULLMQ, RAW_SCRIPT, TAILRUN, Peer

QUIET = 0.7
"""Load of the machine up to which it counts as ours."""

HEAD = (
    *("", "one by one /s", "bulk /s", "drain, 1 worker /s", "drain, 2 workers /s"),
    *("CPU µs a job, worker + Redis", "idle: enqueue → start, p50 / p99 ms", "idle CPU", "RSS MB"),
    "redelivery after kill -9",
)


def table(figures: Mapping[Peer, Figures]) -> str:
    """Return everything as a Markdown table."""
    rows = [HEAD, tuple("---" for _ in HEAD), *(_row(peer, figures[peer]) for peer in figures)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def ratios(figures: Mapping[Peer, Figures]) -> str:
    """Return what the goals ask for: Tailrun against the others."""
    ours, raw = figures[TAILRUN], figures[RAW_SCRIPT]
    limit = (
        f"- {100 * max(ours.drain) / max(raw.drain):.0f} % of what Redis gives to a script whose client does "
        f"nothing with the jobs ({_best(raw.drain)} /s)."
    )
    return "\n".join([limit, *(_against(p, figures[p], ours) for p in figures if p.pip or p.npm)])


def _against(peer: Peer, theirs: Figures, ours: Figures) -> str:
    return (
        f"- {peer.name}: Tailrun drains {_times(ours.drain, theirs.drain)} × as fast with one worker, "
        f"{_times(ours.drain_two, theirs.drain_two)} × with two; enqueues one by one "
        f"{_times(ours.single, theirs.single)} ×, in bulk {_times(ours.bulk, theirs.bulk)} ×; there a job "
        f"costs {min(theirs.cpu_us) / min(ours.cpu_us):.1f} × the CPU."
    )


def write(figures: Mapping[Peer, Figures], machine: str, busy: float) -> None:
    """Put table and ratios into the document."""
    versions = "; ".join(dict.fromkeys(f.versions for peer, f in figures.items() if peer is not TAILRUN))
    absent = "" if BULLMQ in figures else "\n\nBullMQ could not be installed on this machine."
    others = "" if busy < QUIET else " (others used its cores: read ratios and CPU, not rates)"
    load = f"Load of the machine before: {busy:.1f}{others}."
    about = f"Measured {today()} on: {machine}. {load} Peers: {versions}.{absent}"
    text = f"{about}\n\n{table(figures)}\n\n{ratios(figures)}"
    sections.replace("queue", text)


def _row(peer: Peer, figures: Figures) -> tuple[str, ...]:
    redelivery = peer.redelivery if figures.redelivery_s is None else f"**{figures.redelivery_s:.1f} s**"
    return (
        *(peer.name, _best(figures.single), _best(figures.bulk), _best(figures.drain)),
        *(_best(figures.drain_two), f"{min(figures.cpu_us):.1f}", p50_p99(figures)),
        *(f"{figures.idle_percent:.1f} %", f"{figures.rss_mb:.0f}", redelivery),
    )


def _best(rates: list[float]) -> str:
    return f"{max(rates):,.0f}"


def _times(ours: list[float], theirs: list[float]) -> str:
    return f"{max(ours) / max(theirs):.1f}"
