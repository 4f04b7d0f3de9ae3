"""The only worker dies: the API ticks on, so that its silence is not taken for that of Redis."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from support.stack import Stack, shell, wait_for
from support.up_process import Up

from app.core.clock import parse_ts

TICKS = 'for i in $(seq 1 {n}); do echo "tick $i"; sleep 0.2; done'
LEASE_S = 5


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path / "up").start()
    yield up
    if up.exit_code is None:
        up.stop()


def test_a_lone_workers_run_is_taken_over_as_soon_as_among_many(up: Up, slack: float) -> None:
    """A lease and a second; where its successor takes longer to start, as soon as that is there."""
    with redis.Redis(port=up.redis_port, decode_responses=True) as client:
        run_id = up.run("run", "--no-follow", "--", "sh", "-c", TICKS.format(n=15)).stdout.strip()
        wait_for(lambda: client.exists(f"agent:tail:{run_id}"), "the run's first line")
        [dead] = client.zrange("jobs:workers", 0, -1)
        up.children()["worker"].kill()
        killed_at = _time_s(client)
        wait_for(lambda: set(client.zrange("jobs:workers", 0, -1)) - {dead}, "its successor")
        ready_at = _time_s(client)
        assert up.run("logs", "-f", run_id).returncode == 0
        starts = [parse_ts(e["ts"]) / 1e6 for e in _events(up, run_id) if _starts(e)]
    assert len(starts) == 2
    assert starts[1] < max(killed_at + LEASE_S + 1, ready_at) + slack, (killed_at, ready_at, starts)


def test_an_api_alone_gives_back_what_a_dead_worker_held(tmp_path: Path, sqlite_url: str) -> None:
    stack = Stack(tmp_path, sqlite_url, workers=0)
    try:
        with stack.redis.client() as client:
            client.rpush("jobs:processing:gone", "entry")
            client.zadd("jobs:workers", {"gone": 1})
            wait_for(lambda: client.lrange("jobs:pending", 0, -1) == ["entry"], "the entry", 30)
            assert not client.exists("jobs:workers")
    finally:
        stack.close()


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_no_live_worker_is_reaped_after_redis_was_away(tmp_path: Path, sqlite_url: str, fault: str) -> None:
    """Though the API may reach Redis before the workers do, and whoever ticks first."""
    stack = Stack(tmp_path, sqlite_url, workers=4, WORKER_CONCURRENCY="1")
    try:
        runs = [stack.submit(shell(TICKS.format(n=100))) for _ in range(4)]
        wait_for(lambda: all(stack.run(run_id)["attempt"] == 1 for run_id in runs), "all to run")
        stack.redis.kill() if fault == "killed" else stack.redis.freeze()
        since = time.monotonic()
        wait_for(lambda: time.monotonic() > since + LEASE_S + 2, "their leases to run out")
        stack.redis.start() if fault == "killed" else stack.redis.thaw()
        for run_id in runs:
            run = stack.wait_end(run_id, 120)
            assert (run["status"], run["attempt"]) == ("succeeded", 1)
        assert "lease ran out" not in "".join(log.read_text() for log in tmp_path.glob("*.log"))
    finally:
        stack.close()


def test_an_api_that_was_frozen_reaps_no_live_worker(tmp_path: Path, sqlite_url: str) -> None:
    stack = Stack(tmp_path, sqlite_url)
    try:
        run_id = stack.submit(shell(TICKS.format(n=50)))
        wait_for(lambda: stack.run(run_id)["attempt"] == 1, "the run to start")
        stack.api.signal(signal.SIGSTOP)
        since = time.monotonic()
        wait_for(lambda: time.monotonic() > since + LEASE_S + 1, "longer than a lease")
        stack.api.signal(signal.SIGCONT)
        assert stack.wait_end(run_id)["attempt"] == 1
    finally:
        stack.close()


def _time_s(client: redis.Redis) -> float:
    seconds, micros = client.time()
    return seconds + micros / 1e6


def _events(up: Up, run_id: str) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {up.token}"}
    url = f"http://127.0.0.1:{up.port}/v1/runs/{run_id}/logs"
    return httpx2.get(url, headers=headers, timeout=60, trust_env=False).json()["events"]


def _starts(event: dict[str, Any]) -> bool:
    return event["type"] == "status" and event["status"] == "running"
