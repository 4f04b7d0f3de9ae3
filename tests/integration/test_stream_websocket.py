"""Following a run over a WebSocket: the real server, the real stores, a real client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import websockets
from support.api_server import TOKEN, Api, serving, settings_for
from support.live_run import PATIENT, LiveRun, Stores, hub_of, stores_of
from support.servers import RedisServer
from support.stream_fixtures import until
from websockets.asyncio.client import ClientConnection, connect

from app.core.models import RunStatus

BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path / "data", redis_server.url, sqlite_url)) as api:
        yield api


@pytest.fixture
async def run(stores: Stores) -> LiveRun:
    return await stores.live_run()


def url(stores: Stores, path: str) -> str:
    return stores.api.url.replace("http", "ws", 1) + path


def events(run: LiveRun, query: str = "") -> connect:
    return connect(url(run.stores, run.path + query), additional_headers=BEARER, **PATIENT)


def watch(run: LiveRun, query: str = "") -> connect:
    path = f"/tasks/{run.run_id}/watch{query}"
    return connect(url(run.stores, path), additional_headers=BEARER, **PATIENT)


async def all_of(socket: ClientConnection) -> list[str]:
    """Read to the close, which must be 1000."""
    got = [str(message) async for message in socket]
    assert socket.close_code == 1000
    return got


async def test_events_as_json(run: LiveRun) -> None:
    """Each message is one event; after the end the connection is closed with 1000."""
    async with events(run) as socket:
        await run.lines(3)
        await run.end()
        got = [orjson.loads(text) for text in await all_of(socket)]
    assert [event["seq"] for event in got] == [1, 2, 3, 4, 5, 6]
    assert [event["type"] for event in got] == ["status", "status", "log", "log", "log", "end"]


async def test_after(run: LiveRun) -> None:
    """`?after=` goes on behind an event, live or after the end."""
    await run.lines(3)
    async with events(run, "?after=3") as socket:
        assert orjson.loads(await socket.recv())["seq"] == 4
        await run.end()
        assert [orjson.loads(text)["seq"] for text in await all_of(socket)] == [5, 6]
    async with events(run, "?after=5") as socket:
        assert [orjson.loads(text)["seq"] for text in await all_of(socket)] == [6]
    async with events(run, "?after=6") as socket:
        assert await all_of(socket) == []


async def test_resume_goes_on_behind_an_event(run: LiveRun) -> None:
    """`{"resume": n}` on an open connection: what follows is n + 1 and so on, live and after the end."""
    await run.lines(20)
    async with events(run) as socket:
        while orjson.loads(await socket.recv())["seq"] < run.seq:
            pass
        for after in (5, 0, run.seq):
            await socket.send(f'{{"resume": {after}}}')
            if after == run.seq:
                await run.lines(1)
            got = [orjson.loads(await socket.recv())["seq"] for _ in range(run.seq - after)]
            assert got == list(range(after + 1, run.seq + 1))
        await run.end()
        assert [orjson.loads(text)["seq"] for text in await all_of(socket)] == [run.seq]
    await until(lambda: hub_of(run.stores.api).readers == 0)


async def test_a_cursor_ahead_of_the_run_is_at_its_top(run: LiveRun) -> None:
    await run.lines(3)
    async with events(run, "?after=5000") as socket:
        await until(lambda: hub_of(run.stores.api).readers == 1)
        await run.end()
        assert [orjson.loads(text)["seq"] for text in await all_of(socket)] == [run.seq]


@pytest.mark.parametrize("what", ["-1", "1.5", "true", "null", '"7"', str(2**60)])
async def test_resume_with_nonsense_is_told(run: LiveRun, what: str) -> None:
    """The close code says that the parameter is wrong, as it does for `?after=`."""
    async with events(run) as socket:
        await socket.send(f'{{"resume": {what}}}')
        async with asyncio.timeout(60):
            await socket.wait_closed()
        assert socket.close_code == 4422


@pytest.mark.parametrize(
    ("status", "error", "word"),
    [
        (RunStatus.SUCCEEDED, None, "DONE"),
        (RunStatus.CANCELLED, {"code": "cancelled", "message": "on request"}, "STOPPED"),
        (RunStatus.TIMED_OUT, {"code": "timeout", "message": "after 3 s"}, "TIMEOUT"),
        (
            RunStatus.FAILED,
            {"code": "exit_nonzero", "message": "code 3\nof ls"},
            "FAILED: exit_nonzero: code 3 of ls",
        ),
    ],
)
async def test_watch_ends_with_a_word(
    run: LiveRun, status: RunStatus, error: dict[str, str] | None, word: str
) -> None:
    """The watch protocol: bare lines, then how it ended."""
    async with watch(run) as socket:
        await run.lines(2)
        await run.end(status, error)
        assert await all_of(socket) == ["line 3", "line 4", word]
    async with watch(run) as socket:
        assert await all_of(socket) == ["line 3", "line 4", word]


async def test_watch_as_json(run: LiveRun) -> None:
    """`?format=json` gives events on the watch path too."""
    await run.end()
    async with watch(run, "?format=json") as socket:
        assert [orjson.loads(text)["type"] for text in await all_of(socket)] == ["status", "status", "end"]


@pytest.mark.parametrize("signal", ["STOP", '{"signal":"STOP"}', '{"signal": "STOP", "why": "tired"}'])
async def test_stop_asks_for_the_end(run: LiveRun, signal: str) -> None:
    """STOP is a cancel request that stands in the row; the stream goes on to the end."""
    async with events(run) as socket:
        await socket.send("hello?")
        await socket.send('{"signal": "GO"}')
        await socket.send(signal)

        async def asked() -> bool:
            found = await run.stores.runs.get(run.run_id)
            return found is not None and found.cancel_requested_at is not None

        await until(asked)
        await run.end(RunStatus.CANCELLED, {"code": "cancelled", "message": "on request"})
        got = await all_of(socket)
    assert orjson.loads(got[-1])["status"] == "cancelled"


async def refusal(stores: Stores, path: str, **options: object) -> tuple[int | None, str | None]:
    async with connect(url(stores, path), **PATIENT, **options) as socket:  # pyright: ignore[reportArgumentType]
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        return socket.close_code, socket.close_reason


async def test_refusals_have_codes(run: LiveRun, stores: Stores, api: Api) -> None:
    """Token, run and parameters that will not do are told by close codes, with a reason."""
    nowhere = "/tasks/00000000-0000-4000-8000-000000000000/watch"
    code, reason = await refusal(stores, nowhere, additional_headers=BEARER)
    assert code == 4404
    assert "no run" in (reason or "")
    assert (await refusal(stores, run.path))[0] == 4401
    assert (await refusal(stores, run.path, additional_headers={"Authorization": "Bearer no"}))[0] == 4401
    assert (await refusal(stores, run.path + "?access_token=no"))[0] == 4401
    assert (await refusal(stores, run.path + "?after=x", additional_headers=BEARER))[0] == 4422
    assert (await refusal(stores, run.path + "?format=x", additional_headers=BEARER))[0] == 4422
    made = await asyncio.to_thread(api.admin.post, "/v1/tokens", json={"user_id": "eve", "scope": "user"})
    eve = {"Authorization": f"Bearer {made.json()['token']}"}
    assert (await refusal(stores, run.path, additional_headers=eve))[0] == 4404


async def test_a_foreign_page_is_told_that_it_may_not(
    tmp_path: Path, redis_server: RedisServer, sqlite_url: str
) -> None:
    """4403, as docs say, where no token is needed but not every page may call."""
    with serving(settings_for(tmp_path, redis_server.url, sqlite_url, auth="off")) as api:
        made = await asyncio.to_thread(api.client().post, "/v1/runs", json={"argv": ["x"]})
        url = f"{api.url.replace('http', 'ws')}/v1/runs/{made.json()['run_id']}/stream"
        async with connect(url, **PATIENT, additional_headers={"Origin": "https://evil.example"}) as socket:
            with pytest.raises(websockets.ConnectionClosed):
                await socket.recv()
            assert socket.close_code == 4403


async def test_three_ways_to_bring_a_token(run: LiveRun, stores: Stores) -> None:
    """Header, subprotocol and (a stream token) the query open a stream; a stream token cannot STOP."""
    await run.lines(1)
    async with connect(url(stores, run.path), subprotocols=["bearer", TOKEN], **PATIENT) as socket:  # pyright: ignore[reportArgumentType]
        assert socket.subprotocol == "bearer"
        assert await socket.recv()
    made = await stores.http.post(f"/v1/runs/{run.run_id}/stream-token")
    path = f"{run.path}?access_token={made.json()['token']}"
    async with connect(url(stores, path), **PATIENT) as socket:
        assert await socket.recv()
        await socket.send("STOP")
        await socket.wait_closed()
        assert socket.close_code == 4403


async def test_the_limit_is_try_again_later(
    tmp_path: Path, redis_server: RedisServer, sqlite_url: str
) -> None:
    """Over STREAM_LIMIT the close code is 1013."""
    with serving(settings_for(tmp_path / "data", redis_server.url, sqlite_url, stream_limit=1)) as api:
        async with stores_of(api) as stores:
            run = await stores.live_run()
            async with events(run) as socket:
                await socket.recv()
                assert (await refusal(stores, run.path, additional_headers=BEARER))[0] == 1013
            await until(lambda: hub_of(api).readers == 0)


async def test_draining_says_connect_again(run: LiveRun, stores: Stores) -> None:
    """A server that stops closes with 1012, which is not the end of the run."""
    await run.lines(1)
    async with watch(run) as socket:
        assert await socket.recv() == "line 3"
        stores.api.server.handle_exit(15, None)
        with pytest.raises(websockets.ConnectionClosed):
            await asyncio.wait_for(socket.recv(), 60)
        assert socket.close_code == 1012


async def test_a_client_that_vanishes_leaves_nothing(run: LiveRun, stores: Stores) -> None:
    """A connection that is cut frees its place."""
    socket = await events(run)
    await socket.recv()
    socket.transport.abort()
    await until(lambda: hub_of(stores.api).readers == 0)
    await until(lambda: hub_of(stores.api).feeds == 0)


async def test_a_client_who_does_not_read_is_cut(
    tmp_path: Path, redis_server: RedisServer, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A WebSocket whose client never reads while 8 MB flow is let go; another gets all of it."""
    monkeypatch.setattr("app.routes.websocket.SEND_TIMEOUT_S", 3)
    with serving(settings_for(tmp_path / "data", redis_server.url, sqlite_url)) as api:
        async with stores_of(api) as stores:
            run = await stores.live_run()
            options = PATIENT | {"sock": api.narrow_socket(), "compression": None, "max_queue": 1}
            async with connect(url(stores, run.path), additional_headers=BEARER, **options) as stalled:
                reading = asyncio.create_task(stores.http.get(run.path + "?format=ndjson"))
                await until(lambda: hub_of(api).readers == 2)
                for _ in range(80):
                    await run.lines(50, size=2_000)
                    await run.commit()
                await run.end()
                whole = (await asyncio.wait_for(reading, 60)).text.splitlines()
                assert [orjson.loads(line)["seq"] for line in whole] == list(range(1, run.seq + 1))
                await until(lambda: hub_of(api).readers == 0)
                stalled.transport.abort()
