"""The servers that `stream.py` compares: how each is started, fed and asked for its stream.

Every one runs on core 0 alone; what feeds it, Redis and the watchers share the rest.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import psutil
from support.servers import RedisServer, free_port

from app.db.migrate import migrate

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "bench" / "peers"
INSTALLED = ROOT / "build" / "bench-peers"
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
TOKEN = "bench-token"
START_S = 20.0
CORE = min(os.sched_getaffinity(0))
"""Where each server runs, alone."""
_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
load_module {module};
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; nchan_shared_memory_size 512M;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 127.0.0.1:{port};
    location = /pub {{ nchan_publisher; nchan_channel_id x; nchan_message_buffer_length 200000; }}
    location = /stream {{ nchan_subscriber eventsource; nchan_channel_id x;
      nchan_subscriber_first_message newest; }}
  }}
}}
"""


class Missing(Exception):
    """A peer cannot be measured here; the message says why."""


class Server:
    """A started peer: its processes, its feeder, and the request that opens its stream."""

    def __init__(self, closing: ExitStack) -> None:
        self._closing = closing
        self.port = free_port()
        self.redis: RedisServer | None = None
        self.process: psutil.Process | None = None
        self._feeder: subprocess.Popen[str] | None = None
        self.request = lambda: b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"
        self.prepare: Callable[[], None] = lambda: None
        """Makes a fresh stream; called before watchers connect."""

    def start(self, argv: list[str], **env: str) -> None:
        """Start the server on core 0, and wait until it listens."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {CORE})
        try:
            process = subprocess.Popen(
                argv, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        finally:
            os.sched_setaffinity(0, before)
        self._closing.callback(_stop, process)
        self.process = psutil.Process(process.pid)
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Missing(f"{argv[0]} did not start") from None
                time.sleep(0.05)
            else:
                return

    def with_redis(self) -> RedisServer:
        """Start a Redis that drops no slow subscriber."""
        folder = Path(self._closing.enter_context(_folder()))
        limits = ("--client-output-buffer-limit", "pubsub 0 0 0")
        self.redis = RedisServer(folder, appendonly=False, options=limits).start()
        self._closing.callback(self.redis.stop)
        return self.redis

    def fed_by(self, *argv: str) -> None:
        """Start the process that sends lines."""
        self._feeder = subprocess.Popen(
            [sys.executable, str(PEERS / "feeder.py"), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._closing.callback(_stop, self._feeder)
        self.wait()

    def say(self, command: str) -> None:
        """Give the feeder a command; `wait` returns when it is done."""
        assert self._feeder is not None
        assert self._feeder.stdin is not None
        self._feeder.stdin.write(command + "\n")
        self._feeder.stdin.flush()

    def wait(self) -> None:
        """Wait until the feeder is done."""
        assert self._feeder is not None
        assert self._feeder.stdout is not None
        if self._feeder.stdout.readline() != "done\n":
            raise SystemExit("the feeder broke")

    def cpu_s(self) -> float:
        """Return the CPU seconds of the server's processes."""
        assert self.process is not None
        times = [one.cpu_times() for one in (self.process, *self.process.children(recursive=True))]
        return sum(one.user + one.system for one in times)

    def rss_mb(self) -> float:
        """Return the memory of the server's processes that is theirs alone, with Redis's."""
        assert self.process is not None
        found = [self.process, *self.process.children(recursive=True)]
        if self.redis is not None and self.redis.process is not None:
            found.append(psutil.Process(self.redis.process.pid))
        return sum(one.memory_full_info().uss for one in found) / 1e6

    def resident_mb(self) -> float:
        """Return the resident memory of the server without Redis."""
        assert self.process is not None
        found = [self.process, *self.process.children(recursive=True)]
        return max(one.memory_info().rss for one in found) / 1e6


@dataclass(frozen=True)
class Peer:
    """One row: its name, how it starts, and about how many lines a second it delivers."""

    name: str
    start: Callable[[Server], str]
    lines_per_s: tuple[int, int, int, int]
    """A guess for 1, 10, 100 and 500 watchers: what a burst is made of."""


def limit(server: Server) -> str:
    """Bare TCP."""
    feed = free_port()
    server.start([sys.executable, str(PEERS / "limit.py"), str(server.port), str(feed)])
    server.fed_by("tcp", str(feed))
    return f"uvloop {version('uvloop')}"


def nchan(server: Server) -> str:
    """Debian's nginx with libnginx-mod-nchan."""
    nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if nginx is None or not NCHAN.exists():
        raise Missing("nginx or libnginx-mod-nchan is not installed and could not be")
    folder = Path(server._closing.enter_context(_folder()))  # noqa: SLF001 - of one piece with it
    folder.chmod(0o755)
    config = folder / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""
    config.write_text(user + _NGINX.format(folder=folder, port=server.port, module=NCHAN))
    server.start([nginx, "-c", str(config)])
    server.fed_by("nchan", str(server.port))
    server.request = lambda: b"GET /stream HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
    return _debian("nginx", "libnginx-mod-nchan")


def better_sse(server: Server) -> str:
    """Node."""
    node = shutil.which("node")
    if node is None or not (INSTALLED / "node_modules" / "better-sse").exists():
        raise Missing("node or better-sse is not installed and could not be")
    feed = free_port()
    script = INSTALLED / "better_sse.mjs"  # beside its node_modules
    shutil.copy(PEERS / "better_sse.mjs", script)
    server.start([node, str(script), str(server.port), str(feed)])
    server.fed_by("tcp", str(feed))
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return f"Node {said}, better-sse 0.16.1"


def own_sse(server: Server) -> str:
    """FastAPI."""
    feed = free_port()
    server.start([sys.executable, str(PEERS / "own_sse.py"), str(server.port), str(feed)])
    server.fed_by("tcp", str(feed))
    return f"fastapi {version('fastapi')}"


def naive(server: Server) -> str:
    """sse-starlette, one subscription per watcher."""
    redis = server.with_redis()
    argv = [sys.executable, str(PEERS / "naive_sse.py"), str(server.port), str(redis.port)]
    server.start(argv)
    server.fed_by("redis", str(redis.port))
    return f"sse-starlette {version('sse-starlette')}"


def tailrun(server: Server) -> str:
    """The API as `tailrun api` starts it: token, SQLite, Redis."""
    redis = server.with_redis()
    folder = Path(server._closing.enter_context(_folder()))  # noqa: SLF001 - of one piece with it
    url = f"sqlite:///{folder}/bench.db"
    migrate(url)
    settings = {
        "PORT": str(server.port),
        "DATA_DIR": str(folder),
        "DATABASE_URL": url,
        "REDIS_URL": redis.url,
        "API_TOKEN": TOKEN,
        "LOG_LEVEL": "error",
        "PYTHONPATH": str(ROOT),
    }
    server.start([sys.executable, "-P", "-m", "app", "api"], **settings)
    server.fed_by("tailrun", redis.url)
    bearer = {"Authorization": f"Bearer {TOKEN}"}

    def fresh() -> None:
        body: dict[str, Any] = {"argv": ["true"], "start": False}
        answer = httpx2.post(
            f"http://127.0.0.1:{server.port}/v1/runs", json=body, headers=bearer, trust_env=False
        )
        run = answer.raise_for_status().json()
        with redis.client() as client:
            client.flushall()  # the last burst's tail
        server.say(f"open {run['run_id']} {run['last_seq']}")
        server.wait()
        path = f"/v1/runs/{run['run_id']}/stream"
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        server.request = lambda: request

    server.prepare = fresh
    return f"uvicorn {version('uvicorn')}"


PEERS_IN_ORDER = (
    Peer("limit: uvloop TCP, joined writes", limit, (300_000, 1_000_000, 4_000_000, 6_000_000)),
    Peer("nchan (nginx), memory", nchan, (30_000, 100_000, 150_000, 150_000)),
    Peer("Node better-sse", better_sse, (50_000, 150_000, 250_000, 250_000)),
    Peer("FastAPI's own SSE", own_sse, (12_000, 15_000, 15_000, 10_000)),
    Peer("naive: sse-starlette, a subscription each", naive, (12_000, 15_000, 15_000, 15_000)),
    Peer("**Tailrun**, its endpoint with auth", tailrun, (150_000, 1_000_000, 2_500_000, 2_500_000)),
)


def install() -> None:
    """Bring what the peers need where it is missing; who has no network or no rights loses rows, loudly."""
    if not (INSTALLED / "node_modules" / "better-sse").exists() and shutil.which("npm"):
        INSTALLED.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PEERS / name, INSTALLED / name)
        _try(["npm", "ci", "--silent", "--no-audit", "--no-fund"], INSTALLED)
    if not NCHAN.exists():
        pairs = ("nginx:nginx", f"{NCHAN}:libnginx-mod-nchan")
        _try(["sh", str(ROOT / "scripts" / "debian_packages.sh"), *pairs], ROOT)


def _try(argv: list[str], cwd: Path) -> None:
    try:
        subprocess.run(argv, cwd=cwd, check=True, timeout=180)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"NOT INSTALLED, a row will be missing: {' '.join(argv[:2])}: {error}", flush=True)


def _debian(*packages: str) -> str:
    argv = ["dpkg-query", "-W", "-f", "${Package} ${Version}, ", *packages]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip(", ")


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tailrun-bench-", ignore_cleanup_errors=True)


def _stop(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
