"""The queue from outside of the workers: push a run, look at the depth, read and drop dead letters.

Claim, ack and requeue, which only a worker does, are in `claims`; the tick is in `lease`.

A dead letter is an entry that was given up, with the reason; workers write it (`claims`). It is addressed by
its run, or by an id made from its content, which every letter has: also that of an entry without a run.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import orjson

from app.core.models import Job, Priority, Run
from app.redis.clients import RedisClients, guard
from app.redis.keys import Script

_MARK_TTL_S = 60
_PUSH_BATCH = 500
_READ_AT_ONCE = 500
_RUN_ID = re.compile(r"[!-~]{1,64}")

# KEYS  1 jobs:mark:<run_id>:<n>  2 jobs:pending
# ARGV  1 entry  2 life of the mark in seconds  3 "high" (taken next) or "normal"
# Output  1 pushed, 0 this push was made before
# The mark comes last: a push that Redis refuses (another type of key, a full memory) is to be made again.
_PUSH = Script("""
if redis.call('GET', KEYS[1]) then return 0 end
redis.call(ARGV[3] == 'high' and 'RPUSH' or 'LPUSH', KEYS[2], ARGV[1])
redis.call('SET', KEYS[1], '1', 'EX', ARGV[2])
return 1
""")

# KEYS  1… jobs:mark:<run_id>:<n>, one for each entry  #KEYS jobs:pending
# ARGV  1 life of the marks in seconds  2 RPUSH (taken next) or LPUSH  3… entries
# Output  number pushed; the others were pushed before
_PUSH_MANY = Script("""
local fresh, marks = {}, {}
for i = 1, #KEYS - 1 do
  if not marks[KEYS[i]] and not redis.call('GET', KEYS[i]) then
    marks[KEYS[i]] = true
    fresh[#fresh + 1] = ARGV[i + 2]
  end
end
if #fresh > 0 then redis.call(ARGV[2], KEYS[#KEYS], unpack(fresh)) end
for i = 1, #KEYS - 1 do
  if marks[KEYS[i]] then redis.call('SET', KEYS[i], '1', 'EX', ARGV[1]) end
end
return #fresh
""")


@dataclass(frozen=True, slots=True)
class Depth:
    """How much waits where. Lease times are seconds left, negative once dead.

    `lacks`: by worker, why it claims nothing though it is alive.
    """

    pending: int
    delayed: int
    dead: int
    processing: dict[str, int]
    workers: dict[str, float]
    now_us: int
    lacks: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def in_flight(self) -> int:
        """Entries that workers hold."""
        return sum(self.processing.values())

    @property
    def alive(self) -> list[str]:
        """The workers whose leases run."""
        return [name for name, left in self.workers.items() if left > 0]


class Queue:
    """Both sides' view of the queue. Every method raises `RedisDown` while Redis is away."""

    def __init__(self, clients: RedisClients) -> None:
        self._clients = clients
        self._redis: Any = clients.commands
        self._keys = clients.keys

    async def push(self, job: Job, push_no: int) -> bool:
        """Push an entry; False if the `push_no`-th push of this run was made in the last 60 s.

        Safe to repeat: the mark and the push are one script.
        """
        keys = (self._keys.mark(job.run_id, push_no), self._keys.pending())
        with guard():
            return bool(await _PUSH(self._redis, keys, (job.encode(), _MARK_TTL_S, job.priority)))

    async def push_many(self, pushes: Sequence[tuple[Job, int]]) -> int:
        """Push many entries, each with its push number, in a call per some hundred; return how many.

        The same promises as `push`, also when it is repeated after an error in the middle.
        """
        pushed = 0
        for command, high in (("RPUSH", True), ("LPUSH", False)):
            chosen = [push for push in pushes if (push[0].priority == Priority.HIGH) is high]
            for at in range(0, len(chosen), _PUSH_BATCH):
                page = chosen[at : at + _PUSH_BATCH]
                marks = (self._keys.mark(job.run_id, push_no) for job, push_no in page)
                entries = (job.encode() for job, _ in page)
                with guard():
                    keys = (*marks, self._keys.pending())
                    pushed += await _PUSH_MANY(self._redis, keys, (_MARK_TTL_S, command, *entries))
        return pushed

    async def push_run(self, run: Run, now: int, *, front: bool = False) -> None:
        """Push the entry of a queued run, or delay it until `next_attempt_at`. Safe to repeat.

        `front`: it is taken next, whatever its priority.
        """
        due = run.next_attempt_at
        if due is not None and due > now:
            await self.push_delayed(delayed_job(run, due), due)
        else:
            job = Job.of(run, now)
            await self.push(replace(job, priority=Priority.HIGH) if front else job, run.attempt)

    async def push_delayed(self, job: Job, due_us: int) -> None:
        """Let an entry become pending at `due_us`."""
        with guard():
            await self._redis.zadd(self._keys.delayed(), {job.encode(): due_ms(due_us)})

    async def forget_delayed(self, run: Run) -> None:
        """Take the entry of a run that waited for its time out of `jobs:delayed`."""
        if run.next_attempt_at is None:
            return
        with guard():
            await self._redis.zrem(self._keys.delayed(), delayed_job(run, run.next_attempt_at).encode())

    async def depth(self) -> Depth:
        """Count what waits, what is held and who holds it."""
        with guard():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.llen(self._keys.pending())
                pipe.zcard(self._keys.delayed())
                pipe.llen(self._keys.dead())
                pipe.zrange(self._keys.workers(), 0, -1, withscores=True)
                now, pending, delayed, dead, workers = await pipe.execute()
            names = [name.decode() for name, _ in workers]
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.llen(self._keys.processing(name))
                    pipe.get(self._keys.lack(name))
                found = await pipe.execute() if names else []
        held, lacks = found[::2], zip(names, found[1::2], strict=True)
        now_us = now[0] * 1_000_000 + now[1]
        return Depth(
            pending=pending,
            delayed=delayed,
            dead=dead,
            processing=dict(zip(names, held, strict=True)),
            workers={name.decode(): score / 1000 - now_us / 1_000_000 for name, score in workers},
            now_us=now_us,
            lacks={name: text.decode("utf-8", "replace") for name, text in lacks if text},
        )

    async def next_runs(self, count: int) -> list[str]:
        """Return the ids of the runs that are taken next, at most `count`."""
        with guard():
            entries = await self._redis.lrange(self._keys.pending(), -count, -1)
        return [run_id for raw in reversed(entries) if (run_id := run_id_of(raw)) is not None]

    async def live_workers(self) -> list[str]:
        """Return the ids of the workers whose leases run, by Redis TIME."""
        with guard():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.zrange(self._keys.workers(), 0, -1, withscores=True)
                now, workers = await pipe.execute()
        now_ms = now[0] * 1000 + now[1] // 1000
        return [name.decode() for name, deadline in workers if deadline > now_ms]

    async def worker_alive(self, worker_id: str) -> bool:
        """Whether a worker's lease still runs, by Redis TIME."""
        with guard():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.zscore(self._keys.workers(), worker_id)
                now, deadline = await pipe.execute()
        return deadline is not None and deadline > now[0] * 1000 + now[1] // 1000

    async def worker_gone(self, worker_id: str) -> bool:
        """Whether a worker is dead for certain: its lease ran out, and not because Redis was away.

        After Redis was away the tick holds everybody to be alive for a lease (see `ticks`).
        """
        with guard():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.zscore(self._keys.workers(), worker_id)
                pipe.get(self._keys.tick())
                now, deadline, tick = await pipe.execute()
        now_ms = now[0] * 1000 + now[1] // 1000
        hold_ms = int(tick.split()[1]) if tick else now_ms + 1
        return (deadline is None or deadline <= now_ms) and hold_ms <= now_ms

    async def known_runs(self) -> AsyncIterator[list[str]]:
        """Yield the run ids of all entries that wait or are held, page by page, for the reconciler.

        Entries move on meanwhile. Each place is read from the end at which they come in, and before the
        place to which they go: one that moves may come twice. (A reaper or an ack can hide one; it is
        pushed once more then, which is harmless.)
        """
        keys = self._keys
        with guard():
            workers = await self._redis.zrange(keys.workers(), 0, -1)
        # by this name, and not as ZREVRANGE, which the documented rights do not hold
        newest = ("ZRANGE", keys.delayed())
        async for page in self._pages(
            lambda first, last: self._redis.execute_command(*newest, first, last, "REV")
        ):
            yield page
        for key in (keys.pending(), *(keys.processing(worker.decode()) for worker in workers)):
            async for page in self._pages(lambda first, last, key=key: self._redis.lrange(key, first, last)):
                yield page

    async def _pages(self, read: Callable[[int, int], Awaitable[list[bytes]]]) -> AsyncIterator[list[str]]:
        first = 0
        while True:
            with guard():
                entries = await read(first, first + _READ_AT_ONCE - 1)
            yield [run_id for raw in entries if (run_id := run_id_of(raw)) is not None]
            if len(entries) < _READ_AT_ONCE:
                return
            first += _READ_AT_ONCE

    async def time_us(self) -> int:
        """Return Redis TIME in microseconds."""
        return await self._clients.time_us()


def run_id_of(raw: bytes) -> str | None:
    """Read the one field of an entry that counts; None where the entry is malformed.

    An id of more than 64 characters, or of other than printable ASCII, is malformed too.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    run_id = body.get("run_id") if isinstance(body, dict) else None
    return run_id if isinstance(run_id, str) and _RUN_ID.fullmatch(run_id) else None


def delayed_job(run: Run, due_us: int) -> Job:
    """Return the entry of a run that waits for its time: the same one each time it is made.

    So adding it twice is one entry, and a cancel can take it out.
    """
    return Job.of(run, due_us)


def due_ms(due_us: int) -> int:
    """Return a due time as `jobs:delayed` holds it, rounded up: no entry comes before its row is due."""
    return -(-due_us // 1000)


_PAGE = 500
_ID_CHARS = 20


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter: its id, its raw text, and what it says (`reason`, `error`, `entry`, `raw`, `at`)."""

    letter_id: str
    raw: bytes
    body: dict[str, Any]

    @property
    def run_id(self) -> str | None:
        """The run that it names; anybody may have written it, so ask the row."""
        run_id = self.body.get("run_id")
        return run_id if isinstance(run_id, str) else None

    def is_named(self, name: str) -> bool:
        """Whether `name` is the letter's id or its run's."""
        return name in {self.letter_id, self.run_id}


class DeadLetters:
    """`jobs:dead`, newest first. Every method raises `RedisDown` while Redis is away."""

    def __init__(self, clients: RedisClients) -> None:
        self._redis: Any = clients.commands
        self._key = clients.keys.dead()

    async def page(self, offset: int, limit: int) -> list[Letter]:
        """Return up to `limit` letters from the `offset`-th on."""
        with guard():
            raws = await self._redis.lrange(self._key, offset, offset + limit - 1)
        return [read_letter(raw) for raw in raws]

    async def all(self) -> AsyncIterator[Letter]:
        """Yield every letter; one that is added or dropped meanwhile may come twice or not at all."""
        offset = 0
        while letters := await self.page(offset, _PAGE):
            for letter in letters:
                yield letter
            offset += len(letters)

    async def named(self, name: str) -> list[Letter]:
        """Return the letters of a run, or the one with this id."""
        return [letter async for letter in self.all() if letter.is_named(name)]

    async def remove(self, letters: Sequence[Letter]) -> int:
        """Drop letters; return how many were still there."""
        if not letters:
            return 0
        with guard():
            async with self._redis.pipeline(transaction=False) as pipe:
                for letter in letters:
                    pipe.lrem(self._key, 0, letter.raw)
                return sum(await pipe.execute())


def read_letter(raw: bytes) -> Letter:
    """Read a letter; one that is unreadable itself is shown as such."""
    letter_id = sha256(raw).hexdigest()[:_ID_CHARS]
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        body = {"run_id": None, "reason": "unreadable", "raw": raw.decode(errors="replace")}
    return Letter(letter_id, raw, body)
