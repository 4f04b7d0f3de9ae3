"""`AUTH=off` is for programs of this machine and our own pages: no other page gets anything."""

from __future__ import annotations

import http.client
from collections.abc import AsyncIterator, Iterator

import pytest
import websockets
from support.api_server import TOKEN, Api, serving, settings_for
from support.live_run import PATIENT, LiveRun, stores_of
from support.servers import RedisServer
from websockets.asyncio.client import connect

OURS = "127.0.0.1:{port}"
READS = ("/metrics", "/readyz", "/openapi.json", "/docs", "/v1/runs", "/v1/projects/default", "/nothing")
PAGES: list[tuple[str, bool]] = [
    (f"http://{OURS}", True),
    ("https://ok.example", True),
    (f"https://{OURS}", False),
    ("http://localhost:{port}", False),
    ("http://127.0.0.1", False),
    ("http://127.0.0.1:3000", False),
    ("http://localhost:3000", False),
    ("http://[::1]:{port}", False),
    (f"http://evil.example@{OURS}", False),
    ("http://evil.example", False),
    ("https://ok.example.evil.example", False),
    ("null", False),
    ("file://", False),
    ("*", False),
    ("", False),
]
HOSTS: list[tuple[str, bool]] = [
    (OURS, True),
    ("localhost:{port}", True),
    ("LOCALHOST", True),
    ("127.0.0.2", True),
    ("[::1]", True),
    ("evil.example", False),
    (f"evil.example@{OURS}", False),
    ("evil.example/@127.0.0.1", False),
    ("127.0.0.1.evil.example", False),
    ("localhost.evil.example", False),
    ("evil.example:127.0.0.1", False),
    ("0.0.0.0", False),
    ("192.168.0.1", False),
    ("", False),
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("auth-off")
    database = f"sqlite:///{folder / 'tailrun.db'}"
    origins = "https://ok.example, *"
    with serving(settings_for(folder, shared_redis.url, database, auth="off", cors_origins=origins)) as api:
        yield api


@pytest.fixture
async def run(api: Api) -> AsyncIterator[LiveRun]:
    async with stores_of(api) as stores:
        yield await stores.live_run()


def port_of(api: Api) -> int:
    return int(api.url.rsplit(":", 1)[1])


def ask(api: Api, method: str, path: str, *headers: tuple[str, str], body: str = "") -> int:
    """Send exactly these headers, and a Host if there is none among them."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(api), timeout=60)
    named = {name.lower() for name, _ in headers}
    connection.putrequest(method, path, skip_host="host" in named, skip_accept_encoding=True)
    for name, value in (*headers, ("Content-Length", str(len(body)))):
        connection.putheader(name, value.format(port=port_of(api)))
    connection.endheaders(body.encode())
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_program_of_this_machine_needs_nothing(api: Api) -> None:
    assert ask(api, "POST", "/v1/runs", body='{"argv": ["x"]}') == 201
    assert {ask(api, "GET", path) for path in READS} == {200, 404}


@pytest.mark.parametrize(("origin", "let_in"), PAGES)
def test_pages_of_other_origins_are_refused(api: Api, origin: str, let_in: bool) -> None:
    """Also those of another port of this machine; what CORS_ORIGINS names is let in, `*` is not a name."""
    header = ("Origin", origin)
    assert ask(api, "POST", "/v1/runs", header, body='{"argv": ["x"]}') == (201 if let_in else 403)
    for path in READS:
        assert (ask(api, "GET", path, header) != 403) is let_in, path
    assert ask(api, "GET", "/v1/runs", ("Authorization", f"Bearer {TOKEN}"), header) == (
        200 if let_in else 403
    )


@pytest.mark.parametrize(("host", "let_in"), HOSTS)
def test_other_names_of_this_machine_are_refused(api: Api, host: str, let_in: bool) -> None:
    """A name that an attacker points at 127.0.0.1 makes their page same-origin: nothing is read under it."""
    header = ("Host", host)
    for path in READS:
        assert (ask(api, "GET", path, header) != 403) is let_in, path
    assert ask(api, "GET", "/healthz", header) == 200


@pytest.mark.parametrize(
    ("site", "let_in"),
    [
        ("same-origin", True),
        ("none", True),
        ("same-site", False),
        ("cross-site", False),
        ("CROSS-SITE", False),
    ],
)
def test_requests_without_an_origin_are_told_by_their_site(api: Api, site: str, let_in: bool) -> None:
    """An image or a script of a foreign page has no Origin; another port of this machine is same-site."""
    assert (ask(api, "GET", "/v1/runs", ("Sec-Fetch-Site", site)) == 200) is let_in


def test_two_hosts_or_origins_are_none(api: Api) -> None:
    ours = (f"http://{OURS}", OURS)
    assert ask(api, "GET", "/v1/runs", ("Origin", ours[0]), ("Origin", "http://evil.example")) == 403
    assert ask(api, "GET", "/v1/runs", ("Host", ours[1]), ("Host", "evil.example")) in {400, 403}


@pytest.mark.parametrize(("origin", "let_in"), [("", True), *PAGES[:-1]])
async def test_sockets_of_other_origins_are_closed(run: LiveRun, origin: str, let_in: bool) -> None:
    """The same for WebSockets, with a token and without; the empty one here is a program that sends none."""
    api = run.stores.api
    headers = {"Origin": origin.format(port=port_of(api))} if origin else {}
    for more in ({}, {"Authorization": f"Bearer {TOKEN}"}):
        url = api.url.replace("http", "ws", 1) + run.path
        async with connect(url, additional_headers={**headers, **more}, **PATIENT) as socket:
            if let_in:
                assert await socket.recv()
            else:
                with pytest.raises(websockets.ConnectionClosed):
                    await socket.recv()
                assert "AUTH=off" in (socket.close_reason or "")
