"""A seeded storm: runs with known output pass while parts of the system are killed, frozen and cut.

Every program writes each of its steps, with its attempt and the time, to a file outside of the
workspace; so that afterwards it can be told whether two attempts ever ran at the same time.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from support.stack import Stack, Watcher, seqs, shell, wait_for
from support.tcp_proxy import TcpProxy

LINES = 20
OVERLAP_S = 2.0
"""What two attempts may overlap when a worker was cut off from Redis alone."""

PROGRAM = (
    "for i in $(seq 1 {lines}); do"
    ' echo "$TAILRUN_ATTEMPT $(date +%s%N)" >> {file}; echo "line $i"; sleep {pause}; done'
)


class Havoc:
    """Breaks one thing after the other for a while; whatever it broke works again afterwards.

    `proxies` stand before Redis and the database, by name.
    """

    def __init__(self, stack: Stack, seed: int, proxies: dict[str, TcpProxy]) -> None:
        self.stack, self.dice = stack, random.Random(seed)
        self.proxies = proxies
        self.done: list[str] = []
        self.over = threading.Event()

    def rage(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        deeds = [self.kill_worker, self.freeze_worker, self.kill_api, self.kill_redis, self.freeze_redis]
        deeds += [self.cut_connections, self.push_garbage]
        network = [self.cut_half, self.freeze_half, self.slow_down, self.lose_replies]
        while time.monotonic() < until and not self.over.is_set():
            deed = self.dice.choice(deeds + network * bool(self.proxies))
            if deed in network:
                name = self.dice.choice(sorted(self.proxies))
                self.done.append(f"{deed.__name__} of {name}")
                deed(self.proxies[name])
            else:
                self.done.append(deed.__name__)
                deed()
            time.sleep(self.dice.uniform(0.1, 2.0))  # the storm's own pace, nothing waits on it

    def kill_worker(self) -> None:
        worker = self.dice.choice(self.stack.workers)
        worker.kill()
        worker.start()

    def freeze_worker(self) -> None:
        worker = self.dice.choice(self.stack.workers)
        worker.signal(signal.SIGSTOP)
        time.sleep(self.dice.choice([1.0, 7.0]))
        worker.signal(signal.SIGCONT)

    def kill_api(self) -> None:
        self.stack.api.kill()
        self.stack.api.start()

    def kill_redis(self) -> None:
        self.stack.redis.kill()
        time.sleep(self.dice.choice([0.0, 2.0]))
        self.stack.redis.start()

    def freeze_redis(self) -> None:
        self.stack.redis.freeze()
        time.sleep(self.dice.choice([1.0, 7.0]))
        self.stack.redis.thaw()

    def cut_connections(self) -> None:
        with self.stack.redis.client() as client:
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    def push_garbage(self) -> None:
        with self.stack.redis.client() as client:
            client.lpush("jobs:pending", "garbage", '{"run_id":"nobody"}', "[]")

    def cut_half(self, proxy: TcpProxy) -> None:
        proxy.cut(0.5, reset=self.dice.choice([True, False]))

    def freeze_half(self, proxy: TcpProxy) -> None:
        """Some connections of a process stand still, others do not: its lease's, say, but not its claims'."""
        proxy.freeze(0.5)
        time.sleep(self.dice.choice([1.0, 7.0]))
        proxy.thaw()

    def slow_down(self, proxy: TcpProxy) -> None:
        proxy.delay_s = 0.1
        time.sleep(2.0)
        proxy.delay_s = 0.0

    def lose_replies(self, proxy: TcpProxy) -> None:
        """Of any ten requests among the next hundred, whole or but for some bytes."""
        for _ in range(10):
            proxy.lose(skip=self.dice.randrange(100), keep=self.dice.choice([0, 1, 5]))


def storm(
    stack: Stack, folder: Path, *, seed: int, runs: int, seconds: float, proxies: dict[str, TcpProxy]
) -> str:
    """Submit runs while havoc rages, then hold every one of them to the promises; return what happened."""
    havoc, watchers = Havoc(stack, seed, proxies), list[Watcher]()
    raging = threading.Thread(target=havoc.rage, args=(seconds,))
    raging.start()
    try:
        try:
            run_ids = _submit_all(stack, folder, runs, seconds, watchers)
        finally:
            havoc.over.set()
            raging.join()
        _hold_to_promises(stack, folder, run_ids, watchers)
    except BaseException as error:
        error.add_note(f"seed {seed}: {', '.join(havoc.done)}")
        error.add_note("".join(_tracebacks(log) for log in sorted(stack.folder.glob("*.log"))))
        raise
    return _account(stack, havoc, run_ids, watchers)


def _submit_all(stack: Stack, folder: Path, runs: int, seconds: float, watchers: list[Watcher]) -> list[str]:
    """Spread the runs over the storm, and watch each fifth."""
    run_ids, pace = list[str](), seconds / runs
    for n in range(runs):
        began = time.monotonic()
        command = PROGRAM.format(lines=LINES, file=folder / f"{n}.txt", pause=0.05)
        run_ids.append(stack.submit_stubbornly(shell(command), labels={"n": str(n)}))
        if n % 5 == 0:
            watchers.append(stack.watch(run_ids[-1]))
        time.sleep(max(0.0, began + pace - time.monotonic()))
    return run_ids


def _tracebacks(log: Path) -> str:
    """What a process said from its last traceback on: the folder is gone when somebody reads this."""
    _, found, rest = log.read_text(errors="replace").rpartition("Traceback")
    return f"{log.name}: {found}{rest[:6000]}\n" if found else ""


def _account(stack: Stack, havoc: Havoc, run_ids: list[str], watchers: list[Watcher]) -> str:
    found = [stack.run(run_id) for run_id in run_ids]
    lost = sum(loss.happened for proxy in havoc.proxies.values() for loss in proxy.losses)
    dropped = sum(proxy.dropped for proxy in havoc.proxies.values())
    faults = ", ".join(f"{count} {name}" for name, count in sorted(Counter(havoc.done).items()))
    return (
        f"{len(havoc.done)} faults ({faults}); {lost} replies lost, {dropped} messages dropped; "
        f"{len(found)} runs succeeded, {sum(run['attempt'] for run in found)} attempts, "
        f"{sum(run['redeliveries'] for run in found)} redeliveries; {len(watchers)} watchers complete, "
        f"{sum(watcher.reconnects for watcher in watchers)} reconnects"
    )


def _hold_to_promises(stack: Stack, folder: Path, run_ids: list[str], watchers: list[Watcher]) -> None:
    stack.wait_ready()
    for n, run_id in enumerate(run_ids):
        run = stack.wait_end(run_id, 300)
        assert run["status"] == "succeeded", (run["status"], run["error"], run["attempt"])
        events = stack.events(run_id)
        assert seqs(events) == list(range(1, run["last_seq"] + 1)), run_id
        assert _last_attempt(events, run["attempt"]) == [f"line {i}" for i in range(1, LINES + 1)]
        assert _overlap_s(folder / f"{n}.txt") <= OVERLAP_S, run_id
    for watcher in watchers:
        assert watcher.finish(60) == stack.events(watcher.run_id), watcher.run_id
    _nothing_left(stack)


def _last_attempt(events: list[dict[str, Any]], attempt: int) -> list[str]:
    """The lines of the attempt that did the step; the last one may only have written the end."""
    lines = defaultdict[int, list[str]](list)
    for event in events:
        if event["type"] == "log" and event["stream"] == "stdout":
            lines[event["attempt"]].append(event["content"])
    return lines[max(n for n in lines if n <= attempt)]


def _overlap_s(file: Path) -> float:
    """How long two attempts ran at the same time, by what they wrote themselves."""
    times = defaultdict[int, list[int]](list)
    for line in file.read_text().splitlines():
        attempt, when = line.split()
        times[int(attempt)].append(int(when))
    spans = [times[attempt] for attempt in sorted(times)]
    return max((max(a) - min(b) for a, b in pairwise(spans)), default=0) / 1e9


def _nothing_left(stack: Stack) -> None:
    allowed = ("jobs:workers", "jobs:tick", "jobs:dead", "jobs:leader:", "jobs:mark:", "jobs:probe", "agent:")
    with stack.redis.client() as client:
        wait_for(lambda: not client.keys("jobs:processing:*"), "nothing to be held")
        wait_for(lambda: client.llen("jobs:pending") == 0, "nothing to wait")
        assert [key for key in client.keys("*") if not key.startswith(allowed)] == []
        assert [key for key, life in stack.lives().items() if life == -1] == [], "keys for ever"
        letters = client.lrange("jobs:dead", 0, -1)
        assert all('"malformed"' in letter or '"unknown_run"' in letter for letter in letters)
