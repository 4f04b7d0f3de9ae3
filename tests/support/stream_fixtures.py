"""A run for stream tests: real Redis for tail and channel, a list that stands for the database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from app.core.errors import StorageError
from app.core.events import Entry, Event, EventType
from app.core.models import RunStatus
from app.redis.clients import RedisClients
from app.redis.publisher import Publisher
from tailrun.process.lines import Level, Stream


def log(run_id: str, seq: int, content: str | None = None, **fields: object) -> Event:
    return Event(
        seq=seq,
        type=EventType.LOG,
        ts=1_790_000_000_000_000 + seq,
        run_id=run_id,
        attempt=1,
        level=Level(str(fields.get("level", Level.INFO))),
        stream=Stream(str(fields.get("stream", Stream.STDOUT))),
        step="s1",
        content=f"line {seq}" if content is None else content,
    )


def end(run_id: str, seq: int, status: str = "succeeded", error: object = None) -> Event:
    data = {"status": status, "exit_code": 0, "error": error}
    return Event(seq, EventType.END, 1_790_000_000_000_000 + seq, run_id, 1, data=data)


class Committed:
    """What is in the database: per run its events and status. `away` makes every question fail."""

    def __init__(self) -> None:
        self.events: dict[str, list[Event]] = {}
        self.status: dict[str, RunStatus] = {}
        self.away = False
        self.asked = 0

    def commit(self, events: Sequence[Event]) -> None:
        for event in events:
            self.events.setdefault(event.run_id, []).append(event)
            if event.type is EventType.END:
                self.status[event.run_id] = RunStatus(event.data["status"])

    async def history(self, run_id: str, after: int, limit: int) -> list[Event]:
        self._ask()
        await asyncio.sleep(0)
        return [event for event in self.events.get(run_id, []) if event.seq > after][:limit]

    async def heads(self, run_ids: Sequence[str]) -> dict[str, tuple[int, RunStatus]]:
        self._ask()
        await asyncio.sleep(0)
        return {
            run_id: (
                self.events[run_id][-1].seq if self.events.get(run_id) else 0,
                self.status.get(run_id, RunStatus.RUNNING),
            )
            for run_id in run_ids
        }

    def _ask(self) -> None:
        self.asked += 1
        if self.away:
            raise StorageError("the database is away")


class Writer:
    """Writes one run as the log writer does: tail and channel first, the database behind."""

    def __init__(self, clients: RedisClients, committed: Committed, run_id: str, batch: int = 64) -> None:
        self.run_id = run_id
        self.seq = 0
        self._committed = committed
        self._publisher = Publisher(clients, batch=batch)
        self._uncommitted: list[Event] = []

    async def open(self) -> Writer:
        await self._publisher.raise_fence(self.run_id, 1)
        return self

    async def lines(self, count: int = 1, *, size: int = 0) -> None:
        first = self.seq + 1
        events = [
            log(self.run_id, seq, f"line {seq}".ljust(size, ".")) for seq in range(first, first + count)
        ]
        await self.write(events)

    async def end(self, status: str = "succeeded", error: object = None) -> None:
        event = end(self.run_id, self.seq + 1, status, error)
        self.commit()
        self._committed.commit([event])
        self._uncommitted.clear()
        await self.write([event], commit=False)

    async def write(self, events: list[Event], *, commit: bool = True) -> None:
        self.seq = events[-1].seq
        if commit:
            self._uncommitted += events
        refused = await self._publisher.append(
            self.run_id, 1, events[0].seq, [event.encode() for event in events], keep_from=0
        )
        assert refused is None

    def commit(self) -> None:
        self._committed.commit(self._uncommitted)
        self._uncommitted = []


def seqs(entries: Sequence[Entry]) -> list[int]:
    """An encoding for tests: the numbers alone."""
    return [seq for seq, _ in entries]


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], timeout_s: float = 60) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.005)
