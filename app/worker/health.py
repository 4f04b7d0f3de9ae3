"""The worker's small HTTP server (`/healthz`, `/readyz` and `/metrics` on `WORKER_PORT`), and its readiness.

What keeps the worker from claiming runs is told to its log and to `/readyz`.
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
from app.runs.readiness import StoreCheck, trouble
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
        except Exception:  # the worker continues; probes find that nothing answers
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
    """Leaves signals to the worker, and sleeps without requests: uvicorn itself wakes ten times a second."""

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

log = structlog.get_logger()


class ClaimReadiness:
    """Whether this worker may claim runs. `trouble` is what keeps it from it, empty if nothing."""

    def __init__(self, stores: StoreCheck, resources: Resources) -> None:
        self._stores, self._resources = stores, resources
        self.trouble = "starting"

    async def wait(self, draining: asyncio.Event) -> bool:
        """Wait for Redis and the database; False if told to stop first."""
        while not draining.is_set():
            missing = trouble(await self._stores())
            if not missing:
                return True
            log.warning("waiting", error=missing)
            await self.pause(draining, missing)
        return False

    async def pause(self, draining: asyncio.Event, missing: str) -> None:
        """Note that a store is away, and wait before the next look."""
        self.trouble = missing
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(draining.wait(), RETRY_S)

    def remark(self) -> None:
        """Log what Redis should be set to though it answers."""
        for remark in self._stores.remarks:
            log.warning(remark)

    async def probe(self, in_flight: int) -> tuple[bool, str]:
        """Answer `/readyz`: whether runs are claimed, and why not, or what there is to say."""
        missing = self._resources.lack() or self.trouble
        if missing:
            return False, missing
        await self._stores.look_at_redis()
        remarks = (f"remark: {remark}" for remark in self._stores.remarks)
        return True, "\n".join([f"ready, {in_flight} runs in flight", *remarks])
