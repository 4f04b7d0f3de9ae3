"""The lease thread against a loop that does not answer: a busy one is kept, a wedged one is given up."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.servers import RedisServer
from support.stack import Process, Stack, free_port, shell, wait_for
from support.stream_fixtures import until

from app.redis.lease import LeaseClient
from app.worker.lease import EXIT_BROKEN, EXIT_WEDGED, Lease

ROOT = Path(__file__).parents[2]

HOLDER = """
import asyncio, sys, time
from app.redis.lease import LeaseClient
from app.worker.lease import Lease

async def main():
    client = LeaseClient(sys.argv[1], "", "w1", 5)
    lease = Lease(
        client,
        asyncio.get_running_loop(),
        on_renewed=lambda: None,
        on_held=lambda held: None,
        renew_every_s=0.1,
        wedged_after_s=4,
    )
    lease.start()
    block_s = float(sys.argv[2])
    print("holding", flush=True)
    time.sleep(block_s)  # the loop does not turn meanwhile
    print("turning", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""

BURNING_WORKER = """
import sys, time
from app.config import Settings
from app.worker import job_processor, main

plan = job_processor.plan

def burning(run, *more):
    until = time.monotonic() + float(run.labels.get("burn_s", 0))
    while time.monotonic() < until:
        pass
    return plan(run, *more)

job_processor.plan = burning
sys.exit(main.serve(Settings()))
"""


@contextmanager
def holder(redis_server: RedisServer, block_s: float) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lease and blocks its event loop."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, redis_server.url, str(block_s)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "holding\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_worker_whose_loop_is_wedged_ends_and_says_so(redis_server: RedisServer) -> None:
    """Else it would renew for ever what nobody works on."""
    with holder(redis_server, 600) as process:
        said = process.communicate(timeout=60)[1]
        assert process.returncode == EXIT_WEDGED
        assert "event loop has not answered" in said
    with redis_server.client() as client:
        wait_for(lambda: client.zscore("jobs:workers", "w1") < time.time() * 1000, "the lease to run out")


def test_a_worker_whose_lease_thread_breaks_ends_and_says_so(redis_server: RedisServer) -> None:
    """No memory was left, say: without a lease it would go on with runs that others take."""
    broken = HOLDER.replace("on_renewed=lambda: None", "on_renewed=lambda: bytearray(2**62)")
    done = subprocess.run(
        [sys.executable, "-c", broken, redis_server.url, "0"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == EXIT_BROKEN
    assert "MemoryError" in done.stderr


def test_a_loop_that_turns_again_in_time_is_kept(redis_server: RedisServer) -> None:
    with holder(redis_server, 0.8) as process:
        assert process.stdout
        assert process.stdout.readline() == "turning\n"
        assert renews(redis_server)
        assert process.poll() is None


def test_a_worker_that_was_frozen_is_not_taken_for_wedged(redis_server: RedisServer) -> None:
    """Its loop could not answer, but neither could its lease thread ask."""
    with holder(redis_server, 0) as process:
        assert process.stdout
        assert process.stdout.readline() == "turning\n"
        assert renews(redis_server)
        process.send_signal(signal.SIGSTOP)
        with redis_server.client() as client:
            wait_for(lambda: client.zscore("jobs:workers", "w1") < time.time() * 1000, "its lease to run out")
        process.send_signal(signal.SIGCONT)
        assert renews(redis_server)
        assert process.poll() is None


def renews(redis_server: RedisServer) -> bool:
    """Wait until the lease has been renewed twice more."""
    with redis_server.client() as client:
        for _ in range(2):
            before = client.zscore("jobs:workers", "w1") or 0
            wait_for(lambda seen=before: (client.zscore("jobs:workers", "w1") or 0) > seen, "a renewal")
    return True


class BurningStack(Stack):
    """Workers that burn CPU in the loop's own thread before a run that asks for it."""

    def add_worker(self, n: int) -> Process:
        port = free_port()
        env = self._env(WORKER_PORT=str(port))
        return Process("worker.main", env, self.folder / f"worker{n}.log", entry=BURNING_WORKER)


@pytest.fixture
def stack(tmp_path: Path, sqlite_url: str) -> Iterator[Stack]:
    stack = BurningStack(tmp_path, sqlite_url, workers=2, LEASE_S="4")
    yield stack
    stack.close()


def test_a_run_that_burns_cpu_in_the_loop_keeps_its_lease(stack: Stack) -> None:
    """Longer than a lease, while another worker reaps every second."""
    run_id = stack.submit(shell("echo done"), labels={"burn_s": "6"})
    with stack.redis.client() as client:
        wait_for(lambda: client.keys("jobs:processing:*"), "a worker to take it")
    owner = stack.owner(run_id)
    run = stack.wait_end(run_id)
    assert (run["status"], run["attempt"], run["redeliveries"]) == ("succeeded", 1, 0)
    assert owner.popen.poll() is None
    assert not any("lease ran out" in worker.log.read_text() for worker in stack.workers)


async def started_lease(redis_server: RedisServer, held: list[list[bytes]]) -> Lease:
    """A lease on this loop, renewed ten times a second, once it has been renewed."""
    lease = Lease(
        LeaseClient(redis_server.url, "", "w1", 5),
        asyncio.get_running_loop(),
        on_renewed=lambda: None,
        on_held=held.append,
        renew_every_s=0.1,
    )
    lease.start()
    await until(lambda: bool(held))
    return lease


async def test_the_end_leaves_the_workers_and_gives_back_what_is_held(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.rpush("jobs:processing:w1", "a", "b")
        held: list[list[bytes]] = []
        lease = await started_lease(redis_server, held)
        assert held[0] == [b"a", b"b"]
        assert client.zscore("jobs:workers", "w1") is not None
        await asyncio.to_thread(lease.stop)
        assert not lease.is_alive()
        assert client.zscore("jobs:workers", "w1") is None
        assert client.lrange("jobs:pending", 0, -1) == ["a", "b"]
        await asyncio.to_thread(lease.stop)  # once more does no harm


async def test_a_redis_that_is_frozen_ages_the_lease_and_holds_up_neither_renewal_nor_end(
    redis_server: RedisServer,
) -> None:
    held: list[list[bytes]] = []
    lease = await started_lease(redis_server, held)
    redis_server.freeze()
    try:
        await until(lambda: lease.age_s > 2)
    finally:
        redis_server.thaw()
    await until(lambda: lease.age_s < 1)
    redis_server.freeze()
    try:
        await until(lambda: lease.age_s > 1)
        await asyncio.to_thread(lease.stop)
        assert not lease.is_alive()
    finally:
        redis_server.thaw()
