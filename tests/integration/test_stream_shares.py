"""Open streams: each user's share of them, and their end with the token that opened them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
import websockets
from support.api_server import Api, changed, error_of, serving, settings_for
from support.live_run import PATIENT, LiveRun, Stores, hub_of, stores_of
from support.servers import RedisServer
from support.stream_fixtures import until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from app.config import Settings
from app.db.engine import Database
from app.db.token_store import TokenStore
from app.runs import open_streams
from app.runs.open_streams import OpenStreams

ALIASES = (
    "/v1/runs/{}/stream",
    "/agent/logs/{}/stream",
    "/runs/{}/logs/stream",
    "/api/v1/operations/{}/stream",
)
SOCKETS = ("/v1/runs/{}/stream", "/tasks/{}/watch")


@pytest.fixture
def settings(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> Settings:
    return settings_for(tmp_path / "data", redis_server.url, sqlite_url, user_stream_max=2)


@pytest.fixture
def api(settings: Settings) -> Iterator[Api]:
    with serving(settings) as api:
        yield api


class Caller:
    """A user with a token of their own, which can be revoked."""

    def __init__(self, stores: Stores, made: dict[str, Any]) -> None:
        self.stores = stores
        self.token_id: str = made["token_id"]
        self.headers = {"Authorization": f"Bearer {made['token']}"}

    @classmethod
    async def make(cls, stores: Stores, user: str, **more: Any) -> Caller:
        made = await stores.http.post("/v1/tokens", json={"user_id": user, **more})
        return cls(stores, made.json())

    async def revoke(self) -> None:
        assert (await self.stores.http.delete(f"/v1/tokens/{self.token_id}")).status_code == 204

    async def stream_token(self, run: LiveRun) -> str:
        made = await self.stores.http.post(f"/v1/runs/{run.run_id}/stream-token", headers=self.headers)
        assert made.status_code == 201, made.text
        return made.json()["token"]

    def watch(self, run: LiveRun, path: str = SOCKETS[0], query: str = "") -> connect:
        url = self.stores.api.url.replace("http", "ws", 1) + path.format(run.run_id) + query
        return connect(url, additional_headers={} if query else self.headers, **PATIENT)

    @asynccontextmanager
    async def follow(
        self, run: LiveRun, path: str = ALIASES[0], token: str = "", at: Api | None = None
    ) -> AsyncIterator[httpx2.Response]:
        url = (at.url if at else "") + path.format(run.run_id) + (f"?access_token={token}" if token else "")
        headers = {"Authorization": ""} if token else self.headers
        async with self.stores.http.stream("GET", url, headers=headers) as response:
            yield response


@pytest.fixture
async def stores(api: Api) -> AsyncIterator[Stores]:
    async with stores_of(api) as stores:
        yield stores


async def closed(socket: websockets.ClientConnection) -> tuple[int | None, str | None]:
    async with asyncio.timeout(60):
        await socket.wait_closed()
    return socket.close_code, socket.close_reason


async def rest_of(response: httpx2.Response) -> str:
    async with asyncio.timeout(60):
        return "".join([piece async for piece in response.aiter_text()])


async def test_a_user_has_a_share_of_the_streams(stores: Stores) -> None:
    """Whatever way the streams are opened; others are let in, and free places are given again."""
    run, other = await stores.live_run("ada"), await stores.live_run("bob")
    ada, bob = await Caller.make(stores, "ada"), await Caller.make(stores, "bob")
    token = await ada.stream_token(run)
    async with ada.watch(run) as socket:
        await socket.recv()
        async with ada.follow(run, token=token) as response:
            assert response.status_code == 200
            for path in ALIASES:
                for given in ("", token):
                    async with ada.follow(run, path, given) as refused:
                        await refused.aread()
                        assert error_of(refused) == (429, "too_many_streams")
                        assert "USER_STREAM_MAX" in refused.text
                        assert refused.headers["retry-after"]
            for path in SOCKETS:
                for query in ("", f"?access_token={token}"):
                    async with ada.watch(run, path, query) as refused:
                        code, reason = await closed(refused)
                    assert code == 1013
                    assert "2 streams" in (reason or "")
            async with bob.follow(other) as welcome, bob.watch(other) as too:
                assert welcome.status_code == 200
                assert await too.recv()
    await until(lambda: hub_of(stores.api).readers == 0)
    async with ada.follow(run) as response:
        assert response.status_code == 200


async def test_many_at_once_get_no_more_than_the_share(stores: Stores) -> None:
    """Requests that come at the same moment are counted as well as those that come one after another."""
    run = await stores.live_run("ada")
    ada = await Caller.make(stores, "ada")
    statuses: list[int] = []

    async def one() -> None:
        async with ada.follow(run) as response:
            statuses.append(response.status_code)
            if response.status_code == 200:
                await rest_of(response)

    clients = [asyncio.create_task(one()) for _ in range(30)]
    await until(lambda: len(statuses) == 30)
    await run.end()
    await asyncio.gather(*clients)
    assert sorted(statuses) == [200] * 2 + [429] * 28


async def test_without_tokens_everybody_is_one_user(settings: Settings) -> None:
    """With AUTH=off the share holds as well."""
    with serving(changed(settings, auth="off")) as api:
        async with stores_of(api) as stores:
            run = await stores.live_run()
            nobody = {"Authorization": ""}
            async with (
                stores.http.stream("GET", run.path, headers=nobody) as one,
                stores.http.stream("GET", run.path, headers=nobody) as two,
                stores.http.stream("GET", run.path, headers=nobody) as three,
            ):
                assert [one.status_code, two.status_code, three.status_code] == [200, 200, 429]


@pytest.fixture
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two ways brings the end: the message alone, or the look-up alone."""
    if request.param == "message":
        monkeypatch.setattr(open_streams, "CHECK_EVERY_S", 3600)
    else:
        monkeypatch.setattr(OpenStreams, "_revoked", lambda *_: None)
    return request.param


@pytest.mark.parametrize("ends", ["message", "look-up"], indirect=True)
async def test_what_a_revoked_token_opened_ends(ends: str, settings: Settings, stores: Stores) -> None:
    """On every API process: its streams, its sockets and those of its stream tokens; others go on."""
    run = await stores.live_run("ada")
    ada, again = await Caller.make(stores, "ada"), await Caller.make(stores, "ada")
    settings = changed(settings, user_stream_max=100)
    with serving(settings) as other:
        made = await ada.stream_token(run)
        async with (
            ada.follow(run, at=other) as one,
            ada.follow(run, token=made, at=other) as two,
            again.follow(run, at=other) as kept,
            ada.watch(run) as socket,
        ):
            await socket.recv()
            await until(lambda: hub_of(other).readers == 3)
            await until(lambda: hub_of(stores.api).subscriptions.connected)
            await until(lambda: hub_of(other).subscriptions.connected)
            await ada.revoke()
            assert await closed(socket) == (1008, "The token is revoked or has expired.")
            for response in (one, two):
                assert '"type":"end"' not in await rest_of(response)
            for token in ("", made):
                async with ada.follow(run, token=token) as refused:
                    assert refused.status_code == 401
            await run.lines(1)
            await run.end()
            assert '"type":"end"' in await rest_of(kept)


async def test_a_signal_over_a_revoked_token_is_refused_at_once(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STOP asks the database, although nobody has told this process of the revocation."""
    monkeypatch.setattr(open_streams, "CHECK_EVERY_S", 3600)
    monkeypatch.setattr(OpenStreams, "_revoked", lambda *_: None)
    run = await stores.live_run("ada")
    ada = await Caller.make(stores, "ada")
    async with ada.watch(run) as socket:
        await socket.recv()
        await ada.revoke()
        with suppress(ConnectionClosed):  # the look that had begun before the patch was faster
            await socket.send("STOP")
        assert (await closed(socket))[0] == 1008
    found = await stores.runs.get(run.run_id)
    assert found is not None
    assert found.cancel_requested_at is None


async def test_a_stream_ends_when_its_token_expires(stores: Stores) -> None:
    """As with a revoked one; a stream token's own short time is for opening only."""
    run = await stores.live_run("ada")
    brief = await Caller.make(stores, "ada", expires_in_s=2)
    lasting = await Caller.make(stores, "ada")
    made = await lasting.stream_token(run)
    db = Database(stores.api.settings.data.effective_database_url)
    async with brief.follow(run) as one, lasting.follow(run, token=made) as two:
        assert '"type":"end"' not in await rest_of(one)
        await TokenStore(db).purge_expired(2**60)  # the stream token itself is gone
        await db.close()
        await run.end()
        assert '"type":"end"' in await rest_of(two)


async def test_a_download_that_loses_its_token_is_cut(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is only a part does not look whole."""
    run = await stores.live_run("ada")
    for _ in range(20):
        await run.lines(50, size=20_000)
        await run.commit()
    await run.end()
    ada = await Caller.make(stores, "ada")
    path = f"{run.path}?follow=0&format=text"
    readers: Any = hub_of(stores.api)._readers
    async with stores.http.stream("GET", path, headers=ada.headers) as response:
        await until(lambda: bool(readers))
        await ada.revoke()
        await until(lambda: all(reader._closed for reader in readers))
        with pytest.raises(httpx2.TransportError):
            await rest_of(response)


async def test_a_look_at_all_tokens_is_one_query(stores: Stores, api: Api) -> None:
    """However many streams and tokens there are."""
    run = await stores.live_run("ada")
    api.server._app.state.services.streams._per_user = 100
    callers = [await Caller.make(stores, "ada") for _ in range(5)]
    seen: list[str] = []
    store: TokenStore = api.server._app.state.services.tokens
    found = store.valid

    async def counted(token_ids: Any, now: int) -> set[str]:
        seen.append(orjson.dumps(sorted(token_ids)).decode())
        return await found(token_ids, now)

    store.valid = counted  # pyright: ignore[reportAttributeAccessIssue]
    tasks = [asyncio.create_task(_read(caller, run)) for caller in callers for _ in range(3)]
    await until(lambda: hub_of(api).readers == 15)
    seen.clear()
    await until(lambda: len(seen) == 2)
    assert set(seen) == {orjson.dumps(sorted(caller.token_id for caller in callers)).decode()}
    await run.end()
    await asyncio.gather(*tasks)


async def _read(caller: Caller, run: LiveRun) -> None:
    async with caller.follow(run) as response:
        await rest_of(response)
