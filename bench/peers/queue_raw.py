"""The raw limit: what Redis gives to a client that does nothing with the jobs but take and ack them.

`moves`: BLMOVE and LREM in pipelines of 32. `script`: one Lua call acks 100 and takes the next 100.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import redis
from queue_agent import Tally, produce, timed, work

ROLE, URL, WAY = sys.argv[1:4]
LIBRARIES = ["redis", "hiredis"]
PENDING, HELD = "raw:pending", "raw:held"
PIPE, BATCH = 32, 100

# KEYS  1 pending  2 held   ARGV  1 most to take  2… entries to ack   Output  entries taken
SCRIPT = """
for i = 2, #ARGV do redis.call('LREM', KEYS[2], -1, ARGV[i]) end
local taken = redis.call('RPOP', KEYS[1], ARGV[1]) or {}
if #taken > 0 then redis.call('LPUSH', KEYS[2], unpack(taken)) end
return taken
"""


def count(tally: Tally, entries: list[bytes]) -> None:
    """Read number and time of each entry."""
    for entry in entries:
        number, _, sent_ns = entry.partition(b" ")
        tally.job(int(number), int(sent_ns))


def move(client: Any, tally: Tally) -> None:
    """Wait for one; take what else there is in pipelines."""
    entries = [client.blmove(PENDING, HELD, 4, "RIGHT", "LEFT")]
    while taken := [entry for entry in entries if entry is not None]:
        count(tally, taken)
        pipe = client.pipeline(transaction=False)
        for entry in taken:
            pipe.lrem(HELD, -1, entry)
        for _ in range(PIPE):
            pipe.lmove(PENDING, HELD, "RIGHT", "LEFT")
        entries = pipe.execute()[len(taken) :]


def call(client: Any, tally: Tally) -> None:
    """Ack and take by script; wait when there is nothing."""
    script = client.register_script(SCRIPT)
    taken: list[bytes] = []
    while taken := script(keys=(PENDING, HELD), args=(BATCH, *taken)):
        count(tally, taken)
    entry = client.blmove(PENDING, HELD, 4, "RIGHT", "LEFT")
    if entry is not None:
        count(tally, [entry])
        client.lrem(HELD, -1, entry)


async def serve(tally: Tally) -> None:
    """Work for ever, in a thread of its own: the client is a blocking one."""
    client = redis.Redis.from_url(URL, protocol=2)
    take = call if WAY == "script" else move

    def for_ever() -> None:
        while True:
            take(client, tally)

    await asyncio.to_thread(for_ever)


async def answer(words: list[str]) -> Any:
    """Send jobs: one LPUSH each, or 1000 in one."""
    client = CLIENTS.setdefault(URL, redis.Redis.from_url(URL, protocol=2))
    order, numbers = words[0], range(int(words[1]), int(words[2]))

    async def single() -> None:
        for number in numbers:
            client.lpush(PENDING, b"%d %d" % (number, time.monotonic_ns() if order == "paced" else 0))
            if order == "paced":
                time.sleep(float(words[3]))  # noqa: ASYNC251 - nothing else is to happen

    async def bulk() -> None:
        for at in range(0, len(numbers), 1000):
            client.lpush(PENDING, *(b"%d 0" % number for number in numbers[at : at + 1000]))

    return await timed(bulk() if order == "bulk" else single())


CLIENTS: dict[str, Any] = {}
(work(LIBRARIES, serve) if ROLE == "work" else produce(LIBRARIES, answer))
