"""Streams behind Debian's nginx as people have it: buffering on, gzip on, a short read timeout."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import orjson
import pytest
from support.api_server import TOKEN, Api, serving, settings_for
from support.live_run import PATIENT, LiveRun, Stores
from support.servers import RedisServer, free_port
from support.stream_fixtures import until
from websockets.asyncio.client import connect

pytestmark = pytest.mark.deep

BEARER = {"Authorization": f"Bearer {TOKEN}"}
READ_TIMEOUT_S = 2
PING_S = 0.5
CONFIG = """
{user}
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  gzip on; gzip_types *; gzip_proxied any; gzip_min_length 1;
  proxy_buffering on; proxy_read_timeout {timeout}s; proxy_http_version 1.1;
  proxy_set_header Host $host; proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Connection $connection_upgrade;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass {upstream}; }}
    location /deaf/ {{ proxy_pass {upstream}/; proxy_ignore_headers X-Accel-Buffering; }}
  }}
}}
"""


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> Iterator[Api]:
    settings = settings_for(tmp_path / "data", redis_server.url, sqlite_url, stream_ping_s=PING_S)
    with serving(settings) as api:
        yield api


@pytest.fixture
async def run(stores: Stores) -> LiveRun:
    return await stores.live_run()


@pytest.fixture
def nginx(api: Api, tmp_path: Path) -> Iterator[str]:
    """An nginx in front of the API; its address."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        pytest.skip("NOT TESTED: there is no nginx; `make test-deep` installs it where it can")
    port, folder = free_port(), tmp_path / "nginx"
    folder.mkdir()
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(
        CONFIG.format(user=user, folder=folder, port=port, upstream=api.url, timeout=READ_TIMEOUT_S)
    )
    process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
async def http(nginx: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of nginx that asks for gzip, as browsers do."""
    headers = {**BEARER, "Accept-Encoding": "gzip"}
    async with httpx2.AsyncClient(base_url=nginx, headers=headers, timeout=60, trust_env=False) as client:

        async def up() -> bool:
            try:
                return (await client.get("/healthz")).status_code == 200
            except httpx2.ConnectError:
                return False

        await until(up)
        yield client


class Reading:
    """What has come of a stream."""

    def __init__(self, response: httpx2.Response) -> None:
        self._pieces = response.aiter_text()
        self.text = ""

    async def until(self, word: str, timeout_s: float = 1.5, *, count: int = 1) -> None:
        async with asyncio.timeout(timeout_s):
            while self.text.count(word) < count:
                self.text += await anext(self._pieces)


@pytest.mark.parametrize("form", ["sse", "ndjson", "text"])
async def test_lines_pass_at_once(run: LiveRun, http: httpx2.AsyncClient, form: str) -> None:
    """Each line is there before the next is written, though nginx buffers and compresses."""
    async with http.stream("GET", f"{run.path}?format={form}") as response:
        assert response.headers["content-encoding"] == "gzip"
        reading = Reading(response)
        for _ in range(5):
            await run.lines(1)
            await reading.until(f"line {run.seq}")
        await run.end()
        await reading.until("DONE" if form == "text" else '"type":"end"')


async def test_without_the_header_nginx_would_hold_lines_back(run: LiveRun, http: httpx2.AsyncClient) -> None:
    """The same nginx told to ignore `X-Accel-Buffering`: this is what the header is for."""

    async def first_line() -> None:
        async with http.stream("GET", f"/deaf{run.path}?format=text") as response:
            await Reading(response).until(f"line {run.seq}")

    await run.lines(1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(first_line(), 1)
    await run.end()


async def test_an_idle_stream_holds(run: LiveRun, http: httpx2.AsyncClient) -> None:
    """Pings keep it open beyond nginx's read timeout; then lines come as before."""
    async with http.stream("GET", run.path) as response:
        reading = Reading(response)
        for count in range(1, int(READ_TIMEOUT_S * 2 / PING_S)):
            await reading.until(": ping", count=count)
        await run.lines(1)
        await reading.until(f"line {run.seq}")
        await run.end()
        await reading.until('"type":"end"')


async def test_a_websocket_passes_and_takes_stop(run: LiveRun, nginx: str, http: httpx2.AsyncClient) -> None:
    """The upgrade goes through, lines come at once, STOP arrives, the close is clean."""
    url = nginx.replace("http", "ws", 1) + run.path
    async with connect(url, additional_headers=BEARER, **PATIENT) as socket:
        for _ in range(3):
            await run.lines(1)
            async with asyncio.timeout(1.5):
                while orjson.loads(await socket.recv())["seq"] < run.seq:
                    pass
        await socket.send("STOP")

        async def asked() -> bool:
            found = await run.stores.runs.get(run.run_id)
            return found is not None and found.cancel_requested_at is not None

        await until(asked)
        await run.end()
        assert orjson.loads([str(text) async for text in socket][-1])["type"] == "end"
        assert socket.close_code == 1000
