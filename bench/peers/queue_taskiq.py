"""taskiq with taskiq-redis at its best: streams, no result backend, 100 jobs at a time."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from queue_agent import Tally, orders, produce, together, work
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

ROLE, URL = sys.argv[1:3]
LIBRARIES = ["taskiq", "taskiq-redis", "redis", "hiredis"]

broker = RedisStreamBroker(URL, consumer_id="0")  # also what came before the first worker
tally = Tally()
started: list[bool] = []


@broker.task(task_name="job")
async def job(number: int, sent_ns: int) -> None:
    """Do nothing but be counted."""
    tally.job(number, sent_ns)


async def serve(shared: Tally) -> None:
    """Work for ever."""
    globals()["tally"] = shared
    await run_receiver_task(broker, max_async_tasks=100, max_prefetch=100, run_startup=True)


async def answer(words: list[str]) -> Any:
    """Send jobs."""
    if not started:
        await broker.startup()
        started.append(True)

    async def single(number: int, sent_ns: int) -> None:
        await job.kiq(number, sent_ns)

    async def bulk(numbers: range) -> None:
        await together([single(number, 0) for number in numbers])

    return await orders(words, single, bulk, partial(single, -1, 0))


(work(LIBRARIES, serve) if ROLE == "work" else produce(LIBRARIES, answer))
