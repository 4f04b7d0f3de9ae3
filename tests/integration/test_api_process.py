"""The API as a process: start-up, what its log says, signals, a taken port."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import orjson
import pytest
from support.servers import RedisServer, free_port

from app.db.migrate import migrate

TOKEN = "process-token"
START = "import sys; from app.config import Settings; from app.main import serve; sys.exit(serve(Settings()))"
ROOT = Path(__file__).resolve().parents[2]


class Process:
    """One API process with its log in a file."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.port = int(settings.get("PORT") or free_port())
        self.log_file = folder / f"api-{self.port}.log"
        environment = {
            "PATH": os.environ["PATH"],
            "PORT": str(self.port),
            "DATA_DIR": str(folder),
            "API_TOKEN": TOKEN,
            **settings,
        }
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START], env=environment, cwd=ROOT, stderr=log
            )
        self.client = httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            trust_env=False,
            timeout=60,
        )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def wait_for(self, path: str, status: int, timeout_s: float = 60) -> httpx2.Response:
        """Ask until the answer has this status."""
        deadline = time.monotonic() + timeout_s
        while True:
            assert time.monotonic() < deadline, self.log
            assert self.process.poll() is None, self.log
            try:
                response = self.client.get(path)
            except httpx2.TransportError:
                continue
            if response.status_code == status:
                return response

    def wait_for_log(self, pattern: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, self.log):
            assert time.monotonic() < deadline, self.log

    def stop(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def api_process(folder: Path, **settings: str) -> Generator[Process]:
    process = Process(folder, **settings)
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    yield server
    server.stop()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_streams_cleanly_and_exits_with_0(
    tmp_path: Path, redis_server: RedisServer, sqlite_url: str, sig: signal.Signals, slack: float
) -> None:
    """A watcher's answer is complete, not cut; the process is soon gone."""
    migrate(sqlite_url)
    with api_process(tmp_path, REDIS_URL=redis_server.url, DATABASE_URL=sqlite_url) as api:
        api.wait_for("/readyz", 200)
        run_id = api.client.post("/v1/runs", json={"prompt": "x", "planner": "smoke"}).json()["run_id"]
        with api.client.stream("GET", f"/v1/runs/{run_id}/stream?format=ndjson") as stream:
            lines = stream.iter_lines()
            assert orjson.loads(next(lines))["seq"] == 1
            began = time.monotonic()
            api.process.send_signal(sig)
            rest = list(lines)  # raises if the answer is cut
        assert api.process.wait(60) == 0
        assert time.monotonic() - began < 8 * slack  # 2 s on a quiet machine
        assert [orjson.loads(line)["seq"] for line in rest if line] == [2]


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    """It says what to do; the exit code is 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with api_process(tmp_path, PORT=port) as api:
            assert api.process.wait(60) == 1
    [line] = api.log.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert "set PORT" in line


def test_redis_away_at_start_is_no_crash(tmp_path: Path, own_redis: RedisServer, sqlite_url: str) -> None:
    """The process serves and says what is missing; a run is taken; it is ready once Redis is there."""
    migrate(sqlite_url)
    with api_process(tmp_path, REDIS_URL=own_redis.url, DATABASE_URL=sqlite_url) as api:
        checks = api.wait_for("/readyz", 503).json()["checks"]
        assert checks["database"] == "ok"
        assert str(own_redis.port) in checks["redis"], "an admin is told where"
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer no"}):
            strangers = api.client.get("/readyz", headers=headers).json()
            assert strangers == {
                "ready": False,
                "checks": {"database": "ok", "redis": "failed", "files": "ok"},
                "remarks": [],
            }
        assert api.client.get("/healthz").status_code == 200
        api.wait_for_log("warning .*not ready, trying again: Redis.*waiting_for=redis")
        made = api.client.post("/v1/runs", json={"prompt": "x", "planner": "smoke"})
        assert (made.status_code, made.json()["status"]) == (201, "queued")
        own_redis.start()
        api.wait_for("/readyz", 200)
        api.wait_for_log(r"api +ready\b")
        own_redis.kill()
        api.wait_for("/readyz", 503)
        made = api.client.post("/v1/runs", json={"prompt": "y", "planner": "smoke"})
        assert made.status_code == 201
        assert api.client.get(f"/v1/runs/{made.json()['run_id']}").json()["status"] == "queued"
        queue = api.client.get("/v1/queue")
        assert (queue.status_code, queue.headers["Retry-After"]) == (503, "1")
        assert queue.json()["error"]["code"] == "unavailable"


def test_a_database_without_tables_names_the_command(
    tmp_path: Path, redis_server: RedisServer, empty_url: str
) -> None:
    """Not ready, requests are a 503, an admin's /readyz says `tailrun migrate`; then it is ready."""
    with api_process(tmp_path, REDIS_URL=redis_server.url, DATABASE_URL=empty_url) as api:
        assert "tailrun migrate" in api.wait_for("/readyz", 503).json()["checks"]["database"]
        refused = api.client.get("/v1/runs")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        assert "Not ready: database" in refused.json()["error"]["message"]
        api.wait_for_log("not ready.*tailrun migrate")
        assert "Traceback" not in api.log
        migrate(empty_url)
        api.wait_for("/readyz", 200)
        assert api.client.get("/v1/runs").status_code == 200


def test_postgresql_away_is_a_503(tmp_path: Path, redis_server: RedisServer) -> None:
    """Nothing listens there: not ready, and every request says that it can be tried again."""
    url = f"postgresql://u@127.0.0.1:{free_port()}/x"
    with api_process(tmp_path, REDIS_URL=redis_server.url, DATABASE_URL=url) as api:
        assert api.wait_for("/readyz", 503).json()["checks"]["redis"] == "ok"
        response = api.client.post("/v1/runs", json={"prompt": "x", "planner": "smoke"})
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert response.json()["error"]["code"] == "unavailable"


def test_the_access_log_has_no_secrets(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> None:
    """One JSON line a request, with the path but without its query or the token."""
    migrate(sqlite_url)
    settings = {"REDIS_URL": redis_server.url, "DATABASE_URL": sqlite_url, "LOG_FORMAT": "json"}
    with api_process(tmp_path, **settings) as api:
        api.wait_for("/readyz", 200)
        run_id = api.client.post("/v1/runs", json={"prompt": "x", "planner": "smoke"}).json()["run_id"]
        made = api.client.post(f"/v1/runs/{run_id}/stream-token").json()
        url = f"{made['url']}&follow=0"
        assert api.client.get(url, headers={"X-Request-ID": "r1"}).status_code == 200
        api.wait_for_log('"request_id": ?"r1"')
        lines = [orjson.loads(line) for line in api.log.splitlines()]
        [line] = [line for line in lines if line.get("request_id") == "r1"]
        assert line["event"] == f"GET /v1/runs/{run_id}/stream"
        assert (line["status"], line["process"]) == (200, "api")
        assert line["ms"] > 0
        assert made["token"] not in api.log
        assert TOKEN not in api.log
