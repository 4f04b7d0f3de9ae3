"""Watchers that do not give up, one of each way to follow a run: each returns what it has seen.

Whatever happens to their connections, they come back behind the last event they have (text, which has no
numbers, begins anew). An event that is not the very next one is an error at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import orjson
import websockets
from websockets.asyncio.client import connect

from support.live_run import PATIENT
from support.stack import TOKEN
from tailrun.async_client import AsyncClient

BEARER = {"Authorization": f"Bearer {TOKEN}"}
PATIENCE_S = 120.0
PAUSE_S = 0.1


@dataclass
class Watch:
    """One client's way through a run."""

    url: str
    http: httpx2.AsyncClient
    run_id: str
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    lines: list[str] = field(default_factory=list[str])
    connections: int = 0

    @property
    def last(self) -> int:
        return self.events[-1]["seq"] if self.events else 0

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] == "end"

    @property
    def path(self) -> str:
        return f"/v1/runs/{self.run_id}"

    def see(self, event: dict[str, Any]) -> None:
        assert event["seq"] == self.last + 1, (event["seq"], self.last)
        assert not self.ended
        self.events.append(event)

    async def stream(self, query: str, **headers: str) -> AsyncIterator[str]:
        """Yield the lines of a response; a status that asks to try again ends it."""
        async with self.http.stream("GET", f"{self.path}/stream{query}", headers=headers) as answer:
            self.connections += 1
            if answer.status_code == 503:
                return
            assert answer.status_code == 200, answer.status_code
            async for line in answer.aiter_lines():
                yield line


Client = Callable[[Watch], Awaitable[None]]


async def by_sse(watch: Watch) -> None:
    """As EventSource does."""
    headers = {"Last-Event-ID": str(watch.last)} if watch.events else {}
    async for line in watch.stream("", **headers):
        if line.startswith("data: "):
            watch.see(orjson.loads(line[6:]))


async def by_ndjson(watch: Watch) -> None:
    async for line in watch.stream(f"?format=ndjson&after={watch.last}"):
        with suppress(orjson.JSONDecodeError):  # cut within a line
            watch.see(orjson.loads(line))


async def by_text(watch: Watch) -> None:
    """No numbers: it begins anew, and what came to its end counts."""
    lines = [line async for line in watch.stream("?format=text&collapse=none")]
    if lines and lines[-1] == "DONE":
        watch.lines = lines
        watch.events.append({"seq": 0, "type": "end"})


async def by_polling(watch: Watch) -> None:
    answer = await watch.http.get(f"{watch.path}/logs", params={"after": watch.last, "limit": 20})
    watch.connections += 1
    if answer.status_code != 503:
        for event in answer.raise_for_status().json()["events"]:
            watch.see(event)


async def by_websocket(watch: Watch) -> None:
    await _socket(watch, f"?after={watch.last}", None)


async def by_resume(watch: Watch) -> None:
    """Connects without a cursor and says on the open connection where it was."""
    await _socket(watch, "", watch.last)


async def _socket(watch: Watch, query: str, resume: int | None) -> None:
    url = watch.url.replace("http", "ws", 1) + watch.path + "/stream" + query
    async with connect(url, additional_headers=BEARER, **PATIENT) as socket:
        watch.connections += 1
        if resume:
            await socket.send(f'{{"resume": {resume}}}')
        async for text in socket:
            event = orjson.loads(text)
            if resume is None or event["seq"] > watch.last:
                watch.see(event)


async def by_package(watch: Watch) -> None:
    """The client that users import connects again by itself."""
    async with AsyncClient(watch.url, TOKEN, timeout_s=60) as client:
        watch.connections += 1
        follow = client.stream(watch.run_id, watch.last, patience_s=PATIENCE_S)
        async with aclosing(follow) as events:
            async for event in events:
                watch.see({"seq": event.seq, "type": event.type})


CLIENTS: list[Client] = [by_sse, by_websocket, by_resume, by_polling, by_text, by_ndjson, by_package]


async def follow(watch: Watch, client: Client) -> Watch:
    """Follow a run to its end, over as many connections as it takes."""
    async with asyncio.timeout(PATIENCE_S * 2):
        while not watch.ended:
            with suppress(httpx2.TransportError, websockets.WebSocketException, OSError, TimeoutError):
                await client(watch)
            await asyncio.sleep(PAUSE_S)  # a client's manners
    return watch
