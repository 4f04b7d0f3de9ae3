"""A real browser on a page of another origin, doing what docs/streaming.md tells it to do."""

from __future__ import annotations

import asyncio
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.api_server import TOKEN, Api, serving, settings_for
from support.live_run import LiveRun, Stores, hub_of, stores_of
from support.servers import RedisServer
from support.stream_fixtures import until

pytestmark = pytest.mark.deep

PAGE = """<!doctype html><meta charset="utf-8"><script>
const [api, run, mine] = %s;
const tell = (what) => fetch("/told", { method: "POST", body: JSON.stringify(what) });
const seen = { sse: [], ws: [], contents: [] };
async function main() {
  const { token } = await (await fetch(`${api}/v1/runs/${run}/stream-token`, {
    method: "POST", headers: { Authorization: `Bearer ${mine}` } })).json();
  const source = new EventSource(`${api}/v1/runs/${run}/stream?access_token=${token}`);
  const over = new Promise((resolve) => {
    source.onmessage = (message) => {
      const event = JSON.parse(message.data);
      seen.sse.push(event.seq);
      if (event.type === "log") seen.contents.push(event.content);
    };
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) resolve(); };
  });
  const socket = new WebSocket(`${api.replace("http", "ws")}/v1/runs/${run}/stream?access_token=${token}`);
  const closed = new Promise((resolve) => {
    socket.onmessage = (message) => seen.ws.push(JSON.parse(message.data).seq);
    socket.onclose = (event) => { seen.code = event.code; resolve(); };
  });
  await Promise.all([over, closed]);
  await tell(seen);
}
main().catch((error) => tell({ failed: String(error) }));
</script>"""


class Site:
    """Another origin: serves the page, and hears what it tells."""

    def __init__(self) -> None:
        told: queue.Queue[dict[str, Any]] = queue.Queue()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/" else 404)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(site.page.encode() if self.path == "/" else b"")

            def do_POST(self) -> None:
                told.put(orjson.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
                pass

        self.page, self.told = "", told
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture(params=["*its origin*", "*another*"])
def allowed(request: pytest.FixtureRequest, site: Site) -> str:
    """What CORS_ORIGINS says: the page's origin (among others), or not."""
    return f"https://a.example, {site.origin}" if request.param == "*its origin*" else "https://a.example"


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, sqlite_url: str, allowed: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path / "data", redis_server.url, sqlite_url, cors_origins=allowed)) as api:
        yield api


@pytest.fixture
async def stores(api: Api) -> AsyncIterator[Stores]:
    async with stores_of(api) as stores:
        yield stores


@pytest.fixture
async def run(stores: Stores, site: Site) -> LiveRun:
    run = await stores.live_run()
    site.page = PAGE % orjson.dumps([stores.api.url, run.run_id, TOKEN]).decode()
    return run


@pytest.fixture
def browser(run: LiveRun, site: Site, tmp_path: Path) -> Iterator[None]:
    """Chromium on the site's page."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("NOT TESTED: there is no chromium; `make test-deep` installs it where it can")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--no-proxy-server"]
    process = subprocess.Popen(
        [program, *flags, *quiet, f"--user-data-dir={tmp_path / 'profile'}", site.origin],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


async def told(site: Site) -> dict[str, Any]:
    return await asyncio.to_thread(site.told.get, timeout=60)


@pytest.mark.parametrize("allowed", ["*its origin*"], indirect=True)
@pytest.mark.usefixtures("browser")
async def test_a_page_follows_a_run(run: LiveRun, site: Site, api: Api) -> None:
    """Token by fetch, then EventSource and WebSocket: every event once; after the end both stay closed.

    EventSource comes back by itself after the end, and is told by a 204 not to come again.
    """
    await until(lambda: hub_of(api).readers == 2, 60)
    await run.lines(3)
    await run.commit()
    await run.lines(2)
    await run.end()
    seen = await told(site)
    assert seen == {
        "sse": list(range(1, run.seq + 1)),
        "ws": list(range(1, run.seq + 1)),
        "contents": [f"line {seq}" for seq in range(3, 8)],
        "code": 1000,
    }


@pytest.mark.parametrize("allowed", ["*another*"], indirect=True)
@pytest.mark.usefixtures("browser")
async def test_a_page_that_may_not_gets_nothing(run: LiveRun, site: Site) -> None:
    """A page whose origin CORS_ORIGINS does not name cannot even ask for a token."""
    assert "Failed to fetch" in (await told(site))["failed"]
    await run.end()
