"""How history looks over HTTP: progress bars, terminal sequences; and runs whose log is old."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from support.api_server import Api, serving, settings_for
from support.ended_runs import ended_run, expire_all, pack_all, plain_lines, to_keep
from support.run_rows import NOW
from support.servers import RedisServer

from app.core.events import Event, EventType
from app.core.models import Run
from app.db.engine import Database
from app.db.log_retention import LogUpkeep
from app.db.log_store import PACKED, LogStore
from app.maintenance.log_janitor import LogArchiver
from app.storage.factory import open_workspaces
from tailrun.process.lines import Level, Stream

T = TypeVar("T")
BAR = 2500
"""Updates of one bar: more than a page, and more than a chunk of the stream."""


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path, redis_server.url, sqlite_url)) as api:
        yield api


def behind(api: Api, work: Callable[[Database], Awaitable[T]]) -> T:
    async def run() -> T:
        db = Database(api.settings.data.effective_database_url)
        try:
            return await work(db)
        finally:
            await db.close()

    return anyio.run(run)


def a_run(api: Api, events: list[Event]) -> Run:
    return behind(api, lambda db: ended_run(db, events, run_id="0b5c8a52-5c0e-4a55-9d0c-7f4f3f6e2a11"))


def text_pages(api: Api, run: Run, **params: Any) -> list[str]:
    """Every page in text, as a script would read them."""
    client, lines, after = api.admin, [], "0"
    while after is not None:
        page = client.get(f"/v1/runs/{run.run_id}/logs", params={"format": "text", "after": after, **params})
        assert page.status_code == 200, page.text
        lines += page.text.splitlines()
        after = page.headers.get("X-Next-After")
    return lines


@pytest.fixture
def bar(api: Api) -> Run:
    """A line, a bar of many coloured updates, its last state, a line."""

    def line(seq: int, content: str, **data: Any) -> Event:
        return Event(seq, EventType.LOG, NOW, "", 1, Level.INFO, Stream.STDOUT, "s1", content, data)

    updates = [line(n + 4, f"\x1b[32m{n} of {BAR}\x1b[0m", cr=True) for n in range(BAR)]
    return a_run(api, [line(3, "begin"), *updates, line(BAR + 4, "all of it"), line(BAR + 5, "finished")])


def test_text_has_the_last_state_of_a_bar_json_has_all(api: Api, bar: Run) -> None:
    """In pages of any size, and in a download."""
    expected = ["begin", "all of it", "finished"]
    for limit in (1000, 137, 2):
        assert text_pages(api, bar, limit=limit) == expected
    for query in ("follow=0&format=text", "format=text"):
        body = api.admin.get(f"/v1/runs/{bar.run_id}/stream?{query}").text
        assert body.splitlines() == [*expected, "DONE"]
    assert len(text_pages(api, bar, collapse="none")) == BAR + 3
    page = api.admin.get(f"/v1/runs/{bar.run_id}/logs", params={"limit": 1000}).json()
    assert len(page["events"]) == 1000
    collapsed = api.admin.get(f"/v1/runs/{bar.run_id}/logs", params={"collapse": "cr", "after": BAR}).json()
    assert [event["seq"] for event in collapsed["events"]] == [BAR + 4, BAR + 5, BAR + 6]
    stream = api.admin.get(f"/v1/runs/{bar.run_id}/stream?follow=0&format=ndjson&collapse=cr").text
    assert len(stream.splitlines()) == 2 + 3 + 1


def test_ansi_strip_takes_colours_out_everywhere(api: Api, bar: Run) -> None:
    here = f"/v1/runs/{bar.run_id}"
    for path in (
        "logs?limit=9",
        "stream?follow=0",
        "stream?follow=0&format=ndjson",
        "logs?format=text&collapse=none",
    ):
        plain = api.admin.get(f"{here}/{path}").text
        assert "\\u001b[32m" in plain or "\x1b[32m" in plain
        without = api.admin.get(f"{here}/{path}&ansi=strip").text
        assert without == plain.replace("\\u001b[32m", "").replace("\\u001b[0m", "").replace(
            "\x1b[32m", ""
        ).replace("\x1b[0m", "")
    assert api.admin.get(f"{here}/logs?ansi=some").status_code == 422


@pytest.mark.parametrize("archived", [False, True])
def test_a_run_whose_log_expired_still_streams_to_its_end(api: Api, archived: bool) -> None:
    """Without an archive: what is gone, then the end. With one: everything."""
    run = a_run(api, plain_lines(1000))
    here = f"/v1/runs/{run.run_id}"
    paths = ("/stream", "/stream?tail=7", "/logs?after=900", "?logs=5") if archived else ()
    before = {path: api.admin.get(f"{here}{path}").text for path in paths}

    async def expire(db: Database) -> None:
        upkeep, workspaces = LogUpkeep(db), open_workspaces(api.settings)
        await pack_all(upkeep, run)
        if archived:
            kept = await to_keep(upkeep, run, PACKED)
            assert await LogArchiver(LogStore(db), workspaces).archive(kept)
        await expire_all(upkeep, run, PACKED, archived=archived)
        await workspaces.close()

    behind(api, expire)
    assert api.admin.get(here).json()["truncated"] is not archived
    assert api.admin.get(f"{here}/files").json()["items"] == []
    if archived:
        for path, text in before.items():
            assert (
                api.admin.get(f"{here}{path}").text.replace('"truncated":true', '"truncated":false') == text
            )
        tail = api.admin.get(f"{here}/stream?follow=0&format=text&tail=3").text.splitlines()
        assert tail == ["Line 1000", "Line 1001", "Line 1002", "DONE"]
        return
    frames = api.admin.get(f"{here}/stream?format=text").text.splitlines()
    assert frames == [f"[truncated: 1 to {run.last_seq - 1}, 1000 lines]", "DONE"]
    page = api.admin.get(f"{here}/logs?after=500").json()
    assert [event["type"] for event in page["events"]] == ["truncated", "end"]
    assert page["next_after"] is None
    resumed = api.admin.get(f"{here}/stream?follow=0&format=ndjson", headers={"Last-Event-ID": "500"})
    assert len(resumed.text.splitlines()) == 2
