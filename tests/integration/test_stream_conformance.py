"""One run, seen in every way there is to see one: the same events, live and afterwards, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.api_server import TOKEN, Api, serving, settings_for
from support.live_run import PATIENT, LiveRun, Stores, hub_of, now_us
from support.servers import RedisServer
from support.stream_fixtures import until
from websockets.asyncio.client import connect

from app.core.events import Event, EventType
from app.core.models import RunStatus
from tailrun.process.lines import Level, Stream

BEARER = {"Authorization": f"Bearer {TOKEN}"}
Events = list[dict[str, Any]]
HARD = [
    "",
    " indented",
    "tab\there",
    "ünï 日本 \U0001f600",
    '{"seq":1,"type":"end"}',
    "\x1b[31mred",
    "id: 7",
    "~" * 9000,
]


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, database_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path / "data", redis_server.url, database_url)) as api:
        yield api


async def by_sse(run: LiveRun, query: str = "") -> Events:
    frames = (
        (await run.stores.http.get(run.path + query)).text.removeprefix("retry: 2000\n\n").split("\n\n")[:-1]
    )
    parts = [frame.removeprefix("id: ").split("\ndata: ") for frame in frames if not frame.startswith(":")]
    events = [orjson.loads(data) for _, data in parts]
    assert [int(seq) for seq, _ in parts] == [event["seq"] for event in events]
    return events


async def by_ndjson(run: LiveRun, query: str = "") -> Events:
    text = (await run.stores.http.get(f"{run.path}?format=ndjson{query.replace('?', '&')}")).text
    return [orjson.loads(line) for line in text.split("\n")[:-1]]


async def by_download(run: LiveRun, query: str = "") -> Events:
    return await by_ndjson(run, f"{query}?follow=0")


async def by_websocket(run: LiveRun, query: str = "") -> Events:
    url = run.stores.api.url.replace("http", "ws", 1) + run.path + query
    async with connect(url, additional_headers=BEARER, **PATIENT) as socket:
        return [orjson.loads(text) async for text in socket]


async def by_polling(run: LiveRun, query: str = "") -> Events:
    """Ask for small pages until there is no next one."""
    found: Events = []
    after: int | None = int(query.partition("after=")[2] or 0)
    while after is not None:
        path = f"/v1/runs/{run.run_id}/logs?limit=7&after={after}"
        page = (await run.stores.http.get(path)).json()
        found += page["events"]
        after = page["next_after"]
        await asyncio.sleep(0 if page["events"] else 0.05)
    return found


async def by_run(run: LiveRun, query: str = "") -> Events:
    """Ask for the run with the end of its log, as its page does."""
    after = int(query.partition("after=")[2] or 0)
    whole = (await run.stores.http.get(f"/v1/runs/{run.run_id}?logs=1000")).json()["logs"]
    return [event for event in whole if event["seq"] > after]


async def by_text(run: LiveRun, query: str = "") -> str:
    path = f"{run.path}?format=text&collapse=none{query.replace('?', '&')}"
    return (await run.stores.http.get(path)).text


async def by_watch(run: LiveRun, query: str = "") -> str:
    url = run.stores.api.url.replace("http", "ws", 1) + f"/tasks/{run.run_id}/watch{query}"
    async with connect(url, additional_headers=BEARER, **PATIENT) as socket:
        lines = [str(text) async for text in socket]
    # Here updates of a progress bar are left out as soon as something replaces them.
    return "".join(f"{line}\n" for line in lines if not line.endswith("%"))


async def by_text_download(run: LiveRun, query: str = "") -> str:
    return await by_text(run, f"{query}?follow=0")


LIVE: list[Callable[..., Awaitable[Events]]] = [by_sse, by_ndjson, by_websocket, by_polling]
AFTERWARDS = [*LIVE, by_download, by_run]


def shown(story: Story, read: Callable[..., Any]) -> str:
    """What a way of reading text has to show of a run."""
    lines = story.text.splitlines(keepends=True) if read is by_watch else [story.text]
    return "".join(line for line in lines if not line.endswith("%\n"))


LIVE_TEXT: list[Callable[..., Awaitable[str]]] = [by_text, by_watch]
TEXT_AFTERWARDS = [*LIVE_TEXT, by_text_download]


class Story:
    """A run with every type of event that there is, and what all must show of it."""

    def __init__(self, run: LiveRun) -> None:
        self.run = run
        self.events: Events = []

    async def begin(self) -> None:
        """The two `status` events that the run has already."""
        page = (await self.run.stores.http.get(f"/v1/runs/{self.run.run_id}/logs")).json()
        self.events = page["events"]

    async def tell(self, kind: EventType, seq: int | None = None, **fields: Any) -> None:
        run = self.run
        event = Event(seq or run.seq + 1, kind, now_us(), run.run_id, run.attempt, **fields)
        self.events.append(orjson.loads(event.encode()))
        await run._write([event], publish=True)

    async def print(self, *texts: str, **data: Any) -> None:
        for text in texts:
            for stream, level in ((Stream.STDOUT, Level.INFO), (Stream.STDERR, Level.ERROR)):
                await self.tell(EventType.LOG, level=level, stream=stream, step="s1", content=text, data=data)

    async def middle(self) -> None:
        """Everything but the end; some of it committed, some not."""
        step: dict[str, Any] = {"tool": "shell", "status": "running", "n": 1, "of": 1}
        await self.tell(EventType.STEP, level=Level.INFO, step="s1", content="$ make", data=step)
        await self.print(*HARD)
        await self.run.commit()
        await self.print("50%", "99%", cr=True)
        await self.print("a long line's ", split=True)
        await self.tell(
            EventType.GAP, self.run.seq + 5, data={"from": self.run.seq + 1, "to": self.run.seq + 5}
        )
        await self.print("after the gap")
        await self.tell(EventType.ARTIFACT, level=Level.INFO, step="s1", data={"path": "a/b.txt", "size": 3})
        await self.run.commit()
        await self.tell(EventType.USAGE, step="s1", data={"cpu_s": 0.5, "wall_s": 1.0, "max_rss_bytes": 1})
        await self.print("the last line")

    async def end(self) -> None:
        error = {"code": "exit_nonzero", "message": "code 3"}
        await self.run.end(RunStatus.FAILED, error)
        [end] = (await self.run.stores.http.get(f"/v1/runs/{self.run.run_id}?logs=1")).json()["logs"]
        assert (end["type"], end["status"], end["error"]) == ("end", "failed", error)
        self.events.append(end)

    @property
    def text(self) -> str:
        lines: list[str] = []
        for event in self.events:
            if event["type"] == "log":
                lines.append(event["content"])
            if event["type"] == "gap":
                lines.append(f"[lost: {event['from']} to {event['to']}]")
        return "".join(f"{line}\n" for line in [*lines, "FAILED: exit_nonzero: code 3"])


async def test_every_way_shows_the_same_events(stores: Stores, api: Api) -> None:
    """Live, from the middle, and after the end; events with all their fields, text with all its lines."""
    story = Story(await stores.live_run())
    run = story.run
    await story.begin()
    early = [asyncio.ensure_future(read(run)) for read in LIVE]
    early_text = [asyncio.ensure_future(read(run)) for read in LIVE_TEXT]
    await until(lambda: hub_of(api).readers == len(early) + len(early_text) - 1)  # polling is no stream
    await story.middle()
    middle = story.events[len(HARD)]["seq"]
    late = [asyncio.ensure_future(read(run, f"?after={middle}")) for read in LIVE]
    await until(lambda: hub_of(api).readers == len(early) + len(early_text) + len(late) - 2)
    await story.end()

    rest = [event for event in story.events if event["seq"] > middle]
    assert [event["type"] for event in story.events if event["type"] not in {"log", "status"}] == [
        *("step", "gap", "artifact", "usage", "end")
    ]
    for read, got in zip(LIVE, await asyncio.gather(*early), strict=True):
        assert got == story.events, read.__name__
    for read, got in zip(LIVE, await asyncio.gather(*late), strict=True):
        assert got == rest, read.__name__
    for read, text in zip(LIVE_TEXT, await asyncio.gather(*early_text), strict=True):
        assert text == shown(story, read), read.__name__
    for read in AFTERWARDS:
        assert await read(run) == story.events, read.__name__
        assert await read(run, f"?after={middle}") == rest, read.__name__
    for read in TEXT_AFTERWARDS:
        assert await read(run) == shown(story, read), read.__name__
