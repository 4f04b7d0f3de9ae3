"""The whole of Tailrun as real processes, for tests that kill, freeze and restart its parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx2

from app.db.migrate import migrate
from support.forked import ForkedProcess, start_forked
from support.servers import RedisServer, free_port

TOKEN = "test-admin-token"
ENTRY = "import sys; from app.config import Settings; from app.{} import serve; sys.exit(serve(Settings()))"


class Process:
    """One API or worker process, its log in a file; `url` is where it serves."""

    url = ""

    def __init__(self, module: str, env: dict[str, str], log: Path, *, entry: str = ENTRY) -> None:
        self.log = log
        self._entry = entry
        self._env = env
        self._module = module
        self.start()

    def start(self) -> None:
        code = self._entry.replace("{}", self._module)
        self.popen: ForkedProcess | subprocess.Popen[bytes]
        if self._entry == ENTRY:
            self.popen = start_forked(code, self._env, self.log)
            return
        with self.log.open("ab") as out:  # it changes something before Tailrun is imported
            self.popen = subprocess.Popen(
                [sys.executable, "-c", code], env=self._env, stdout=out, stderr=out, start_new_session=True
            )

    def get(self, path: str) -> httpx2.Response:
        """Ask the port of a worker."""
        return httpx2.get(self.url + path, timeout=60, trust_env=False)

    def signal(self, number: int) -> None:
        os.kill(self.popen.pid, number)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def stop(self, timeout_s: float = 60) -> int:
        if self.popen.poll() is None:
            self.signal(signal.SIGCONT)
            self.popen.terminate()
        return self.popen.wait(timeout_s)


class RedisLike(Protocol):
    """A Redis to run on: a server, or servers behind sentinels."""

    @property
    def url(self) -> str: ...

    def client(self) -> Any: ...

    def stop(self) -> None: ...


class Stack:
    """Redis, database, API and workers.

    `settings` are environment variables for all of them, `api_settings` for the API alone.
    """

    def __init__(
        self,
        folder: Path,
        database_url: str,
        workers: int = 1,
        *,
        redis: RedisLike | None = None,
        api_settings: dict[str, str] | None = None,
        **settings: str,
    ) -> None:
        self.folder = folder
        self.redis: Any = redis or RedisServer(folder / "redis").start()
        self._prefix = settings.get("REDIS_PREFIX", "")
        migrate(database_url)
        self.database_url = database_url
        self._settings = settings
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.api = Process("main", self._env(PORT=str(self.port), **(api_settings or {})), folder / "api.log")
        self.workers = [self.add_worker(n) for n in range(workers)]
        self.http = httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
        try:
            self.wait_ready()
        except BaseException as error:
            error.add_note((folder / "api.log").read_text()[-2000:])
            error.add_note("".join(worker.log.read_text()[-2000:] for worker in self.workers))
            self.close()
            raise

    def add_worker(self, n: int) -> Process:
        port = free_port()
        worker = Process("worker.main", self._env(WORKER_PORT=str(port)), self.folder / f"worker{n}.log")
        worker.url = f"http://127.0.0.1:{port}"
        return worker

    def _env(self, **more: str) -> dict[str, str]:
        root = str(Path(__file__).parents[2])
        return {
            **os.environ,
            "PYTHONPATH": root,
            "DATA_DIR": str(self.folder / "data"),
            "REDIS_URL": self.redis.url,
            "DATABASE_URL": self.database_url,
            "API_TOKEN": TOKEN,
            **self._settings,
            **more,
        }

    def wait_ready(self) -> None:
        wait_for(lambda: self._answers("/readyz"), "the API to be ready")
        wait_for(self._workers_leased, "the workers' leases")

    def _answers(self, path: str) -> bool:
        try:
            return self.http.get(path).status_code == 200
        except httpx2.TransportError:
            return False

    def _workers_leased(self) -> bool:
        with self.redis.client() as client:
            return int(client.zcard(f"{self._prefix}jobs:workers")) >= len(self.workers)

    def close(self) -> None:
        """Stop everything; what the processes said last is shown by a test that failed."""
        for process in (*self.workers, self.api):
            print(f"-- {process.log.name}:", *_last_lines(process.log), sep="\n")
            if process.popen.poll() is None:
                process.signal(signal.SIGCONT)
                process.kill()
        self.http.close()
        self.redis.stop()

    # -- what a user does ---------------------------------------------------------------

    def submit(self, *steps: dict[str, Any], **body: Any) -> str:
        content = json.dumps({**({"steps": list(steps)} if steps else {}), **body})
        answer = self.http.post("/v1/runs", content=content)
        assert answer.status_code == 201, answer.text
        return answer.json()["run_id"]

    def submit_stubbornly(self, *steps: dict[str, Any], **body: Any) -> str:
        """Submit like a client that repeats with an idempotency key until it is answered."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        content = json.dumps({"steps": list(steps), **body})
        answer = self._stubbornly("POST", "/v1/runs", content=content, headers=headers)
        return answer.json()["run_id"]

    def run(self, run_id: str) -> dict[str, Any]:
        return self._stubbornly("GET", f"/v1/runs/{run_id}").json()

    def _stubbornly(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Repeat while the API is away or a server behind it is (503)."""
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = self.http.request(method, path, **options)
            except httpx2.TransportError:
                assert time.monotonic() < deadline, f"the API did not answer {method} {path}"
                time.sleep(0.1)
                continue
            if answer.status_code != 503:
                assert answer.is_success, answer.text
                return answer
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.1)

    def cancel(self, run_id: str) -> httpx2.Response:
        return self.http.post(f"/v1/runs/{run_id}/cancel")

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """What the database has of a run, all pages."""
        found: list[dict[str, Any]] = []
        after = 0
        while after is not None:
            params = {"after": after, "limit": 1000}
            page = self._stubbornly("GET", f"/v1/runs/{run_id}/logs", params=params).json()
            found += page["events"]
            after = page["next_after"] if page["events"] else None
        return found

    def wait_end(self, run_id: str, timeout_s: float = 60) -> dict[str, Any]:
        wait_for(lambda: self.run(run_id)["ended_at"] is not None, "the run's end", timeout_s)
        return self.run(run_id)

    def lives(self) -> dict[str, int]:
        """Return of each key that belongs to one run how many seconds it has left, -1 for ever."""
        with self.redis.client() as client:
            names = [f"{self._prefix}{name}:*" for name in ("agent:tail", "agent:fence", "jobs:mark")]
            keys = [key for name in names for key in client.scan_iter(name, count=1000)]
            return {key: life for key in keys if (life := client.ttl(key)) != -2}  # -2: gone meanwhile

    def watch(self, run_id: str) -> Watcher:
        return Watcher(self.url, run_id)

    def owner(self, run_id: str) -> Process:
        """Return the worker process that has a run."""
        with self.redis.client() as client:
            for worker in client.zrange(f"{self._prefix}jobs:workers", 0, -1):
                entries = client.lrange(f"{self._prefix}jobs:processing:{worker}", 0, -1)
                if any(run_id in entry for entry in entries):
                    pid = int(worker.split("-")[-2])
                    return next(process for process in self.workers if process.popen.pid == pid)
        raise AssertionError(f"no worker has {run_id}")


class Watcher(threading.Thread):
    """A client of the SSE endpoint in a thread: reconnects with Last-Event-ID until the end."""

    def __init__(self, url: str, run_id: str) -> None:
        super().__init__(daemon=True)
        self.url, self.run_id = url, run_id
        self.events: list[dict[str, Any]] = []
        self.reconnects = -1
        self.start()

    def run(self) -> None:
        while not self._ended:
            self.reconnects += 1
            try:
                self._follow()
            except httpx2.TransportError:
                time.sleep(0.05)

    @property
    def _ended(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] == "end"

    def _follow(self) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        if self.events:
            headers["Last-Event-ID"] = str(self.events[-1]["seq"])
        url = f"{self.url}/v1/runs/{self.run_id}/stream"
        # no look at the environment: pytest changes it while this thread would read it
        with httpx2.stream("GET", url, headers=headers, timeout=60, trust_env=False) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    self.events.append(json.loads(line[6:]))

    def finish(self, timeout_s: float = 60) -> list[dict[str, Any]]:
        self.join(timeout_s)
        assert not self.is_alive(), f"no end after {timeout_s} s, last event: {self.events[-1:]}"
        return self.events

    def lines(self) -> list[str]:
        return [event["content"] for event in self.events if event["type"] == "log"]

    def wait_line(self, content: str, timeout_s: float = 60) -> None:
        wait_for(lambda: content in self.lines(), f"the line {content!r}", timeout_s)


def seqs(events: list[dict[str, Any]]) -> list[int]:
    return [event["seq"] for event in events]


def shell(command: str, **step: Any) -> dict[str, Any]:
    return {"tool": "shell", "args": {"command": command}, **step}


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


def _last_lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-40:] if log.exists() else []


def processes_with(marker: str) -> list[int]:
    """Return the pids whose command line or environment holds `marker`."""
    return [pid for pid in _pids() if marker in _about(pid)]


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _about(pid: int) -> str:
    try:
        folder = Path(f"/proc/{pid}")
        if folder.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return ""
        return folder.joinpath("cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
