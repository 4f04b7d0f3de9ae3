"""A run for stream tests in real stores: owned as by a worker, written as by its log writer."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from app.core.events import Event, EventType
from app.core.models import Fence, RunKind, RunStatus
from app.db.engine import Database
from app.db.run_store import Batch, Outcome, RunDraft, RunStore
from app.redis.clients import RedisClients
from app.redis.publisher import Publisher
from app.stream.hub import StreamHub
from support.api_server import TOKEN, Api
from tailrun.process.lines import Level, Stream

WORKER = "test-worker"
PATIENT: dict[str, Any] = {"proxy": None, "open_timeout": 60, "close_timeout": 60, "ping_timeout": 60}
"""Options of a WebSocket client that takes a slow machine for what it is."""


def hub_of(api: Api) -> StreamHub:
    """The hub of a served API, to look at."""
    return api.server._app.state.services.hub


def now_us() -> int:
    return time.time_ns() // 1000


@dataclass
class Stores:
    """What a worker has, and an HTTP client with the admin's token."""

    api: Api
    runs: RunStore
    redis: RedisClients
    publisher: Publisher
    http: httpx2.AsyncClient

    async def live_run(self, user: str = "admin") -> LiveRun:
        """Create, start and claim a run; its two `status` events are committed."""
        new = RunDraft(
            run_id=str(uuid.uuid4()),
            user_id=user,
            kind=RunKind.STEPS,
            spec={"steps": []},
            start=True,
            max_attempts=1,
            timeout_s=60,
            labels={},
        )
        run = (await self.runs.create(new, now_us())).run
        claimed = (await self.runs.claim([run.run_id], WORKER, now_us()))[0]
        await self.publisher.raise_fence(run.run_id, claimed.attempt)
        return LiveRun(self, run.run_id, claimed.attempt, claimed.last_seq, claimed.last_seq)


@dataclass
class LiveRun:
    """Writes one run: published at once, committed when asked."""

    stores: Stores
    run_id: str
    attempt: int
    seq: int
    committed: int

    def __post_init__(self) -> None:
        self._uncommitted: list[Event] = []

    @property
    def path(self) -> str:
        return f"/v1/runs/{self.run_id}/stream"

    async def lines(
        self,
        count: int = 1,
        *,
        size: int = 0,
        level: Level = Level.INFO,
        stream: Stream = Stream.STDOUT,
        publish: bool = True,
    ) -> None:
        contents = [f"line {self.seq + 1 + index}".ljust(size, ".") for index in range(count)]
        await self._write(
            [self._event(EventType.LOG, index, text, level, stream) for index, text in enumerate(contents)],
            publish=publish,
        )

    async def end(
        self,
        status: RunStatus = RunStatus.SUCCEEDED,
        error: dict[str, Any] | None = None,
        *,
        publish: bool = True,
    ) -> None:
        data = {"status": status.value, "exit_code": 0, "error": error}
        event = Event(self.seq + 1, EventType.END, now_us(), self.run_id, self.attempt, data=data)
        await self.commit([event], Outcome(status, exit_code=0, error=error))
        await self._write([event], publish=publish)

    async def commit(self, more: list[Event] | None = None, outcome: Outcome | None = None) -> None:
        events = [*self._uncommitted, *(more or [])]
        self._uncommitted = []
        fence = Fence(self.run_id, self.attempt, WORKER)
        if events:
            await self.stores.runs.commit(fence, self.committed, Batch(events=events, outcome=outcome))
            self.committed = events[-1].seq

    def _event(self, kind: EventType, index: int, text: str, level: Level, stream: Stream) -> Event:
        seq = self.seq + 1 + index
        return Event(seq, kind, now_us(), self.run_id, self.attempt, level, stream, "s1", text)

    async def _write(self, events: list[Event], *, publish: bool) -> None:
        self.seq = events[-1].seq
        if events[0].type is not EventType.END:
            self._uncommitted += events
        if publish:
            raws = [event.encode() for event in events]
            refused = await self.stores.publisher.append(
                self.run_id, self.attempt, events[0].seq, raws, keep_from=0
            )
            assert refused is None


@asynccontextmanager
async def stores_of(api: Api) -> AsyncIterator[Stores]:
    """Open a worker's stores on the API's database and Redis."""
    db = Database(api.settings.data.effective_database_url)
    redis = RedisClients(api.settings.redis.effective_url)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    limits = httpx2.Limits(max_connections=None)
    try:
        async with httpx2.AsyncClient(
            base_url=api.url, headers=headers, timeout=60, trust_env=False, limits=limits
        ) as http:
            yield Stores(api, RunStore(db), redis, Publisher(redis), http)
    finally:
        await redis.close()
        await db.close()
