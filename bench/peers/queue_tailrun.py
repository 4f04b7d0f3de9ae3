"""Tailrun's queue layer without the rest: `Queue.push`, and `Claims` driven as a worker drives it.

The loop is that of `app.worker.slots` and `app.worker.job_queue` (claim the free slots and ack what has ended
in one call; a task for each job; BLMOVE when there is nothing), with lease and tick beside it. What is
left out is the database, which says whose each run is.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from queue_agent import Tally, orders, produce, work

from app.config import WorkerSettings
from app.core.models import Job
from app.redis.claims import Claims
from app.redis.clients import RedisClients
from app.redis.lease import TICK_EVERY_S, LeaseClient, Ticks
from app.redis.queue import Queue, run_id_of
from app.worker.lease import Lease

ROLE, URL = sys.argv[1:3]
LIBRARIES = ["redis", "hiredis"]
SLOTS = 100
HOLD = "hold"
LEASE_S: float = WorkerSettings().lease_s


class Slots:
    """A worker's slots with handlers that do nothing."""

    def __init__(self, tally: Tally, claims: Claims) -> None:
        self._tally, self._claims = tally, claims
        self._in_flight: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._acks: list[bytes] = []
        self._waiting = False

    async def serve(self) -> None:
        """Claim for ever."""
        while True:
            free = SLOTS - len(self._in_flight)
            if free <= 0:
                self._freed.clear()
                await self._freed.wait()
                continue
            acks, self._acks = self._acks, []
            claim = await self._claims.claim(free, acks)
            if not self._start(claim.entries):
                self._waiting = True
                entry = await self._claims.wait()
                self._waiting = False
                self._start([] if entry is None else [entry])

    def _start(self, entries: list[bytes]) -> int:
        for entry in entries:
            run_id = run_id_of(entry)
            if run_id is None or run_id in self._in_flight:
                raise SystemExit(f"not an entry of ours: {entry!r}")
            self._in_flight.add(run_id)
            task = asyncio.create_task(self._process(run_id, entry))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(entries)

    async def _process(self, run_id: str, entry: bytes) -> None:
        if run_id == HOLD:
            self._tally.hold()
            await asyncio.Event().wait()
        number, _, sent_ns = run_id.partition("-")
        self._tally.job(int(number), int(sent_ns))
        self._in_flight.discard(run_id)
        self._acks.append(entry)
        self._freed.set()
        if self._waiting:
            acks, self._acks = self._acks, []
            await self._claims.claim(0, acks)


async def serve(tally: Tally) -> None:
    """Work for ever, with lease and tick."""
    clients = RedisClients(URL)
    worker_id = f"bench-{os.getpid()}-{secrets.token_hex(3)}"
    lease = Lease(
        LeaseClient(URL, "", worker_id, LEASE_S),
        asyncio.get_running_loop(),
        on_renewed=lambda: None,
        on_held=lambda _held: None,
    )
    lease.start()
    ticking = asyncio.create_task(_tick(Ticks(clients, LEASE_S)))
    await Slots(tally, Claims(clients, worker_id, LEASE_S)).serve()
    ticking.cancel()


async def _tick(ticks: Ticks) -> None:
    while True:
        await ticks.tick()
        await asyncio.sleep(TICK_EVERY_S)


async def answer(words: list[str]) -> Any:
    """Send jobs."""
    queue = QUEUES.setdefault(URL, Queue(RedisClients(URL)))

    async def single(number: int, sent_ns: int) -> None:
        await queue.push(_job(number, sent_ns), 0)

    async def bulk(numbers: range) -> None:
        await queue.push_many([(_job(number, 0), 0) for number in numbers])

    async def hold() -> None:
        await queue.push(Job(HOLD), 0)

    return await orders(words, single, bulk, hold)


def _job(number: int, sent_ns: int) -> Job:
    """Make a job whose id is as long as a run's."""
    return Job(
        f"{number:012d}-{sent_ns:023d}", "somebody", "steps", enqueued_at="2026-11-20T12:00:00.000000Z"
    )


QUEUES: dict[str, Queue] = {}
(work(LIBRARIES, serve) if ROLE == "work" else produce(LIBRARIES, answer))
