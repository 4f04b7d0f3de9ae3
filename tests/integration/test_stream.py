"""Following a run over HTTP: the real server, the real stores, real clients."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.api_server import Api, error_of, serving, settings_for
from support.live_run import LiveRun, Stores, hub_of, stores_of
from support.servers import RedisServer
from support.stream_fixtures import until

from app.core.models import RunStatus
from app.routes.server import _with_abort, abort, taken
from tailrun.process.lines import Level, Stream


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, database_url: str) -> Iterator[Api]:
    settings = settings_for(tmp_path / "data", redis_server.url, database_url, stream_ping_s=0.3)
    with serving(settings) as api:
        yield api


@pytest.fixture
async def run(stores: Stores) -> LiveRun:
    return await stores.live_run()


async def body(stores: Stores, path: str, **headers: str) -> str:
    response = await stores.http.get(path, headers=headers)
    assert response.status_code == 200, response.text
    return response.text


def ids(sse: str) -> list[int]:
    return [int(line[4:]) for line in sse.splitlines() if line.startswith("id: ")]


async def test_a_live_run_line_by_line(run: LiveRun, stores: Stores) -> None:
    """Lines arrive as they are written, in SSE frames without an event name, then the stream ends."""
    async with stores.http.stream("GET", run.path) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-store"
        received = response.aiter_text()
        assert await anext(received) == "retry: 2000\n\n"
        text = ""

        async def read_to(seq: int) -> None:
            nonlocal text
            while f"id: {seq}\n" not in text:
                text += await asyncio.wait_for(anext(received), 60)

        await read_to(2)
        for _ in range(5):
            await run.lines(1)
            await read_to(run.seq)
        await run.end()
        await read_to(run.seq)
        assert [piece async for piece in received] == []
    frames = [frame for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    assert [frame.split("\n")[0] for frame in frames] == [f"id: {seq}" for seq in range(1, run.seq + 1)]
    events = [orjson.loads(frame.split("\ndata: ")[1]) for frame in frames]
    assert [event["seq"] for event in events] == list(range(1, run.seq + 1))
    assert events[2]["content"] == "line 3"
    assert events[-1]["type"] == "end"
    assert "event:" not in text


@pytest.mark.parametrize(
    "path",
    [
        *("/agent/logs/{}/stream", "/runs/{}/logs/stream", "/api/v1/operations/{}/stream"),
        *("/logs/stream?run_id={}", "/logs/stream?after=0&run_id={}"),
    ],
)
async def test_aliases_give_the_same(run: LiveRun, stores: Stores, path: str) -> None:
    """Each alias streams the same bytes."""
    await run.lines(3)
    await run.end()
    assert await body(stores, path.format(run.run_id)) == await body(stores, run.path)


@pytest.mark.parametrize("path", ["/v1/runs/{}/stream", "/agent/logs/{}/stream", "/logs/stream?run_id={}"])
async def test_head_is_answered_while_the_run_goes_on(run: LiveRun, stores: Stores, path: str) -> None:
    """What GET would be answered with, without the stream; the connection serves the next request."""
    await run.lines(3)
    answer = await stores.http.head(path.format(run.run_id))
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (await stores.http.head(path.format(str(uuid.uuid4())))).status_code == 404
    assert hub_of(stores.api).readers == 0


async def test_reconnect_at_every_seq(run: LiveRun, stores: Stores) -> None:
    """With Last-Event-ID a client goes on right behind it, whether live or after the end."""
    await run.lines(10)
    await run.commit()
    await run.lines(10)

    async def rest(after: int) -> list[int]:
        return ids(await body(stores, run.path, **{"Last-Event-ID": str(after)}))

    live = [asyncio.create_task(rest(after)) for after in range(run.seq + 1)]
    await run.lines(5)
    await run.end()
    for after, got in enumerate(await asyncio.gather(*live)):
        assert got == list(range(after + 1, run.seq + 1))
    for after in range(run.seq):
        assert await rest(after) == list(range(after + 1, run.seq + 1))


async def test_no_content_after_the_end(run: LiveRun, stores: Stores) -> None:
    """The last id of a finished run gets 204, so that EventSource does not come back."""
    await run.end()
    for seq in (run.seq, run.seq + 10):
        response = await stores.http.get(run.path, headers={"Last-Event-ID": str(seq)})
        assert (response.status_code, response.content) == (204, b"")


async def test_a_cursor_ahead_of_the_run_is_at_its_top(run: LiveRun, stores: Stores) -> None:
    """It was another run's: what comes from now on is told, the end above all."""
    await run.lines(3)
    watching = asyncio.create_task(body(stores, f"{run.path}?after=5000"))
    await until(lambda: hub_of(stores.api).readers == 1)
    await run.lines(1)
    before = run.seq
    await run.end()
    assert ids(await watching) == [before, run.seq]


async def test_cursor_precedence(run: LiveRun, stores: Stores) -> None:
    """Last-Event-ID wins over after, after wins over tail; tail counts lines."""
    await run.lines(10)
    await run.end()
    assert ids(await body(stores, f"{run.path}?after=5&tail=1", **{"Last-Event-ID": "9"})) == [10, 11, 12, 13]
    assert ids(await body(stores, f"{run.path}?after=11&tail=9")) == [12, 13]
    assert ids(await body(stores, f"{run.path}?tail=2")) == [11, 12, 13]
    assert ids(await body(stores, f"{run.path}?tail=100")) == list(range(1, 14))


async def test_filters_never_hide_the_end(run: LiveRun, stores: Stores) -> None:
    """`level` and `stream` leave out lines, not the end."""
    await run.lines(2)
    await run.lines(1, level=Level.ERROR, stream=Stream.STDERR)
    await run.lines(1, level=Level.WARNING)
    await run.end()
    assert ids(await body(stores, f"{run.path}?level=warning")) == [5, 6, 7]
    assert ids(await body(stores, f"{run.path}?stream=stderr")) == [5, 7]
    assert ids(await body(stores, f"{run.path}?stream=stdout&level=warning")) == [6, 7]


async def test_formats(run: LiveRun, stores: Stores) -> None:
    """Text has the bare lines and the last word, ndjson the events; both by query and by Accept."""
    await run.lines(2)
    await run.end(RunStatus.FAILED, {"code": "exit_nonzero", "message": "exit code 3"})
    lines = "line 3\nline 4\nFAILED: exit_nonzero: exit code 3\n"
    assert await body(stores, f"{run.path}?format=text") == lines
    assert await body(stores, run.path, Accept="text/plain") == lines
    ndjson = await body(stores, f"{run.path}?format=ndjson")
    assert [orjson.loads(line)["seq"] for line in ndjson.splitlines()] == [1, 2, 3, 4, 5]
    assert await body(stores, run.path, Accept="application/x-ndjson, */*") == ndjson
    assert (await body(stores, run.path, Accept="*/*")).startswith("retry: 2000")


async def test_download_of_what_is_there(run: LiveRun, stores: Stores) -> None:
    """`follow=0` gives what exists now, committed or not, and ends."""
    await run.lines(3)
    await run.commit()
    await run.lines(2)
    response = await asyncio.wait_for(stores.http.get(f"{run.path}?follow=0&format=text"), 60)
    assert response.text == "".join(f"line {seq}\n" for seq in range(3, 8))
    assert response.headers["content-disposition"] == f'attachment; filename="{run.run_id}.log"'
    await run.end()
    assert (await body(stores, f"{run.path}?follow=0&format=text")).endswith("line 7\nDONE\n")
    assert await body(stores, f"{run.path}?follow=0&after={run.seq}&format=text") == ""


async def test_pings_while_silent(run: LiveRun, stores: Stores) -> None:
    """A silent stream gets comments, which clients ignore."""
    async with stores.http.stream("GET", run.path) as response:
        received, text = response.aiter_text(), ""
        while text.count(": ping\n\n") < 2:
            text += await asyncio.wait_for(anext(received), 60)
    await run.end()


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("?after=-1", {}),
        ("?after=x", {}),
        ("?tail=-1", {}),
        ("?format=xml", {}),
        ("?level=loud", {}),
        ("?stream=stdin", {}),
        ("?follow=maybe", {}),
        ("", {"Last-Event-ID": "abc"}),
        ("", {"Last-Event-ID": "-3"}),
        ("", {"Last-Event-ID": "9" * 400}),
    ],
)
async def test_bad_parameters(run: LiveRun, stores: Stores, query: str, headers: dict[str, str]) -> None:
    """A parameter that makes no sense is a 422 before the stream opens."""
    assert error_of(await stores.http.get(run.path + query, headers=headers)) == (422, "invalid")


async def test_who_may_stream(run: LiveRun, stores: Stores, api: Api) -> None:
    """Unknown and foreign runs are 404, no token is 401, a stream token opens its own run only."""
    other = await stores.live_run()
    await run.end()
    unknown = f"/v1/runs/{'0' * 8}-0000-4000-8000-{'0' * 12}/stream"
    assert error_of(await stores.http.get(unknown)) == (404, "not_found")
    assert error_of(await stores.http.get("/v1/runs/nonsense/stream")) == (404, "not_found")
    somebody = await asyncio.to_thread(api.user, "somebody")
    assert error_of(await asyncio.to_thread(somebody.get, run.path)) == (404, "not_found")
    assert error_of(await stores.http.get(run.path, headers={"Authorization": ""})) == (401, "unauthorized")
    made = await stores.http.post(f"/v1/runs/{run.run_id}/stream-token")
    token = made.json()["token"]
    anonymous = await asyncio.to_thread(api.client)
    opened = await asyncio.to_thread(anonymous.get, f"{run.path}?access_token={token}")
    assert ids(opened.text) == list(range(1, run.seq + 1))
    refused = await asyncio.to_thread(anonymous.get, f"{other.path}?access_token={token}")
    assert error_of(refused) == (404, "not_found")


async def test_nothing_is_left_when_clients_leave(run: LiveRun, stores: Stores) -> None:
    """Clients that hang up free their places, and with the last one the subscription goes."""
    for _ in range(5):
        async with stores.http.stream("GET", run.path) as response:
            await anext(response.aiter_text())
    hub = hub_of(stores.api)
    await until(lambda: hub.readers == 0)
    await until(lambda: hub.feeds == 0)


async def test_the_limit(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> None:
    """Over STREAM_LIMIT a stream is a 503 that says when to try again."""
    with serving(settings_for(tmp_path / "data", redis_server.url, sqlite_url, stream_limit=1)) as api:
        async with stores_of(api) as stores:
            run = await stores.live_run()
            async with stores.http.stream("GET", run.path) as response:
                received = response.aiter_text()
                await anext(received)
                refused = await stores.http.get(run.path)
                assert error_of(refused) == (503, "unavailable")
                assert refused.headers["retry-after"] == "2"
            await run.end()
            hub = hub_of(api)
            await until(lambda: hub.readers == 0)
            assert (await stores.http.get(run.path)).status_code == 200


async def test_draining_ends_streams_cleanly(
    run: LiveRun, stores: Stores, tmp_path: Path, redis_server: RedisServer
) -> None:
    """A server that is told to stop ends its streams whole; the client goes on elsewhere."""
    await run.lines(3)
    seen, followed = run.seq, list[str]()

    async def follow() -> None:
        async with stores.http.stream("GET", run.path) as response:
            pieces = list[str]()
            async for piece in response.aiter_text():  # raises when cut
                pieces.append(piece)
                if f"id: {seen}\n" in piece:
                    reached.release()
            followed.append("".join(pieces))

    reached = asyncio.Semaphore(0)
    clients = [asyncio.create_task(follow()) for _ in range(50)]
    async with asyncio.timeout(60):
        for _ in clients:
            await reached.acquire()
        stores.api.server.handle_exit(15, None)
        await asyncio.gather(*clients)
    assert [ids(text) for text in followed] == [list(range(1, seen + 1))] * 50
    assert all(text.endswith("\n\n") for text in followed), "no event was cut in two"
    database_url = stores.api.settings.data.effective_database_url
    with serving(settings_for(tmp_path / "data", redis_server.url, database_url), migrated=False) as other:
        async with stores_of(other) as theirs:
            resumed = asyncio.create_task(body(theirs, run.path, **{"Last-Event-ID": str(seen)}))
            await run.lines(2)
            await run.end()
            assert ids(await asyncio.wait_for(resumed, 60)) == [seen + 1, seen + 2, seen + 3]


async def test_a_client_who_does_not_read_is_cut(
    tmp_path: Path, redis_server: RedisServer, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One viewer never reads while 8 MB flow; another gets all of it, and the first one is let go."""
    monkeypatch.setattr("app.routes.stream.SEND_TIMEOUT_S", 3)
    with serving(settings_for(tmp_path / "data", redis_server.url, sqlite_url)) as api:
        async with stores_of(api) as stores:
            run = await stores.live_run()
            request = (
                f"GET {run.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer bootstrap-token\r\n\r\n"
            ).encode()
            cut, stalled = await asyncio.open_connection(sock=api.narrow_socket(), limit=1)
            stalled.write(request)
            reading = asyncio.create_task(body(stores, run.path))
            hub = hub_of(api)
            await until(lambda: hub.readers == 2)
            for _ in range(80):
                await run.lines(50, size=2_000)
                await run.commit()
            await run.end()
            assert ids(await asyncio.wait_for(reading, 60)) == list(range(1, run.seq + 1))
            await until(lambda: hub.readers == 0)
            with pytest.raises(ConnectionError):  # reset: nothing is kept for a client who may read later
                await cut.read()
            stalled.close()


async def test_what_a_peer_has_taken_moves_only_while_it_reads() -> None:
    """Though the server has handed all of it over: megabytes of it wait in the kernel and in our buffer."""
    opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda _reader, writer: opened.set_result(writer), "127.0.0.1", 0)
    reader, ours = await asyncio.open_connection(*server.sockets[0].getsockname()[:2], limit=1)
    writer = await opened
    scope: dict[str, Any] = {}

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        """The scope is what counts."""

    await _with_abort(app, writer.transport)(scope, None, None)
    writer.write(bytes(30_000_000))

    async def at_rest() -> int:
        before = -1
        while (by_now := taken(scope)) != before:
            before = by_now
            await asyncio.sleep(0.5)
        return by_now

    first = await at_rest()
    assert first < 30_000_000
    while taken(scope) == first:
        assert await reader.read(100_000)
    ours.close()
    writer.transport.abort()
    server.close()
    assert abort(scope)
