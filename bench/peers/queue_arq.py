"""arq at its best: polls every 10 ms (500 by default), keeps no results, 100 jobs at a time."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from arq import create_pool, func
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker
from queue_agent import Tally, orders, produce, together, work

ROLE, URL = sys.argv[1:3]
LIBRARIES = ["arq", "redis", "hiredis"]
POLL_S = 0.01


async def serve(tally: Tally) -> None:
    """Work for ever."""

    async def job(_context: Any, number: int, sent_ns: int) -> None:
        tally.job(number, sent_ns)

    worker = Worker(
        functions=[func(job, name="job", keep_result=0)],
        redis_settings=RedisSettings.from_dsn(URL),
        max_jobs=100,
        poll_delay=POLL_S,
        handle_signals=False,
    )
    await worker.async_run()


async def answer(words: list[str]) -> Any:
    """Send jobs."""
    if not POOLS:
        POOLS.append(await create_pool(RedisSettings.from_dsn(URL)))

    async def single(number: int, sent_ns: int) -> None:
        await POOLS[0].enqueue_job("job", number, sent_ns)

    async def bulk(numbers: range) -> None:
        await together([single(number, 0) for number in numbers])

    return await orders(words, single, bulk, partial(single, -1, 0))


POOLS: list[ArqRedis] = []
(work(LIBRARIES, serve) if ROLE == "work" else produce(LIBRARIES, answer))
