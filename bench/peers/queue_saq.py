"""saq at its best: hiredis, 100 jobs at a time, many enqueued together."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from queue_agent import Tally, orders, produce, together, work
from saq import Queue, Worker

ROLE, URL = sys.argv[1:3]
LIBRARIES = ["saq", "redis", "hiredis"]


async def serve(tally: Tally) -> None:
    """Work for ever."""

    async def job(_context: Any, *, number: int, sent_ns: int) -> None:
        tally.job(number, sent_ns)

    worker = Worker(Queue.from_url(URL), functions=[("job", job)], concurrency=100)
    await worker.start()


async def answer(words: list[str]) -> Any:
    """Send jobs."""
    queue = QUEUES.setdefault(URL, Queue.from_url(URL))

    async def single(number: int, sent_ns: int) -> None:
        await queue.enqueue("job", number=number, sent_ns=sent_ns)

    async def bulk(numbers: range) -> None:
        await together([single(number, 0) for number in numbers])

    return await orders(words, single, bulk, partial(single, -1, 0))


QUEUES: dict[str, Queue] = {}
(work(LIBRARIES, serve) if ROLE == "work" else produce(LIBRARIES, answer))
