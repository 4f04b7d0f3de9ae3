"""The worker's small HTTP server: `/healthz`, `/readyz` and `/metrics` on `WORKER_PORT`.

Whether this worker can work, and what keeps it from it: told to its log and to `/readyz`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.core.bounded_http import BoundedHttp
from app.core.errors import StorageError
from app.core.models import RunStatus
from app.db.engine import Database
from app.db.migrate import ensure_current
from app.db.run_store import RunStore
from app.redis.clients import RedisClients
from app.redis.inspect import ServerReport
from app.worker.resources import Resources

Answer = tuple[int, str, bytes]


class HealthServer:
    """Serves until `stop`. `ready` says whether the worker claims runs, and what keeps it from it."""

    def __init__(self, host: str, port: int, ready: Callable[[], Awaitable[tuple[bool, str]]]) -> None:
        self._ready = ready
        config = uvicorn.Config(
            self._app,
            host=host,
            port=port,
            interface="asgi3",
            http=BoundedHttp,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
        )
        self._server = _Quiet(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start serving; OSError where the port is taken."""
        host, port = self._server.config.host, self._server.config.port
        try:
            sock = socket.create_server((host, port), backlog=128)
        except OSError as error:
            raise OSError(
                f"WORKER_PORT {port} on {host} cannot be used ({error.strerror}); set another"
            ) from error
        self._task = asyncio.create_task(self._serve(sock))

    async def stop(self) -> None:
        """Stop serving."""
        self._server.over.set()
        if self._task is not None:
            await self._task

    async def _serve(self, sock: socket.socket) -> None:
        try:
            await self._server.serve(sockets=[sock])
        except Exception:  # the worker goes on; probes find that nothing answers
            log.exception("health server broke")

    async def _app(self, scope: dict[str, Any], _receive: Any, send: Any) -> None:
        status, kind, body = await self._answer(scope["path"])
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, path: str) -> Answer:
        if path == "/healthz":
            return 200, "text/plain", b"ok\n"
        if path == "/readyz":
            ready, detail = await self._ready()
            return (200 if ready else 503), "text/plain", f"{detail}\n".encode()
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest()
        return 404, "text/plain", b"not found\n"


class _Quiet(uvicorn.Server):
    """Leaves signals to the worker, and sleeps while nobody asks: uvicorn itself wakes ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.over = asyncio.Event()

    async def main_loop(self) -> None:
        """Wait for the end."""
        await self.over.wait()

    def capture_signals(self) -> Any:
        """Return a context that captures nothing."""
        return contextlib.nullcontext()


RETRY_S = 1.0
"""Seconds between two looks at a store that is away."""
_REMARKS_S = 0.5
"""How long `/readyz` waits for what there is to say about Redis; a probe is impatient."""

log = structlog.get_logger()


class Readiness:
    """Asks Redis and the database. `trouble` is what is wrong, empty if nothing."""

    def __init__(
        self, database_url: str, redis: RedisClients, db: Database, runs: RunStore, resources: Resources
    ) -> None:
        self._database_url = database_url
        self._redis, self._db, self._runs, self._resources = redis, db, runs, resources
        self._report = ServerReport(redis)
        self._migrated = False
        self.trouble = "starting"

    async def wait(self, draining: asyncio.Event) -> bool:
        """Wait for Redis and the database; False if told to stop first."""
        while not draining.is_set():
            try:
                await self._ask()
            except StorageError as error:
                log.warning("waiting", error=str(error))
                await self.pause(draining, error)
            else:
                return True
        return False

    async def pause(self, draining: asyncio.Event, error: StorageError) -> None:
        """Note that a store is away, and wait before the next look."""
        self.trouble = str(error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(draining.wait(), RETRY_S)

    async def _ask(self) -> None:
        await self._redis.ping()
        await self._db.ping()
        if not self._migrated:
            await asyncio.to_thread(ensure_current, self._database_url)
            self._migrated = True
        await self._runs.open_runs(RunStatus.RUNNING, limit=1)

    async def remark(self) -> None:
        """Say in the log what is amiss with Redis though it answers."""
        for remark in await self._report.remarks():
            log.warning(remark)

    async def probe(self, in_flight: int) -> tuple[bool, str]:
        """Answer `/readyz`: whether runs are claimed, and why not, or what there is to say."""
        trouble = self._resources.lack() or self.trouble
        if trouble:
            return False, trouble
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REMARKS_S):
                await self._report.remarks()
        remarks = (f"remark: {remark}" for remark in self._report.known)
        return True, "\n".join([f"ready, {in_flight} runs in flight", *remarks])
