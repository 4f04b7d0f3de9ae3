"""Around every request: its id, its line in the log, its time, and an answer whatever happens.

The line has the path without its query, for a stream token may be in it; uvicorn's own
access log is off for the same reason.

HEAD is answered wherever GET is: probes, `curl -I` and link checkers ask so. Bodies come as they are.
"""

from __future__ import annotations

import re
import time
import uuid
from contextlib import suppress
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.telemetry import HTTP_SECONDS, get_logger
from app.routes.errors import error_answer
from app.routes.health import ReadyCheck
from app.runs.readiness import OK

_log = get_logger(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
_SHOWN_PATH = 500
HEADER = "X-Request-ID"
_IDENTITY = {"Accept-Encoding": "identity"}


class Access:
    """ASGI middleware; the outermost but for CORS."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(HEADER, "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        exchange = _AccessRecord(scope, request_id, send)
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, exchange.send)
            except Exception as error:  # noqa: BLE001 - logged whole, answered as a 500
                await exchange.fail(error, receive)
            finally:
                exchange.log()


class HeadAsGet:
    """ASGI middleware; the innermost. A HEAD that no route has is the GET of its path, but for the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        refused = False

        async def unless_refused(message: Message) -> None:
            nonlocal refused
            refused = refused or message.get("status") == HTTPStatus.METHOD_NOT_ALLOWED
            if not refused:
                await send(message)

        async def head_alone(message: Message) -> None:
            await send(message)
            await send({"type": "http.response.body", "body": b""})
            raise _HeadIsOut

        await self.app(scope, receive, unless_refused)
        if refused:
            with suppress(_HeadIsOut, ClientDisconnect):  # what the body would have been is closed with it
                await self.app({**scope, "method": "GET"}, receive, head_alone)


class PlainBodies:
    """ASGI middleware. A body that is compressed is refused: a small one may hold gigabytes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        coding = Headers(scope=scope).get("content-encoding", "") if scope["type"] == "http" else ""
        if coding.lower() in {"", "identity"}:
            await self.app(scope, receive, send)
            return
        message = "The body is compressed (Content-Encoding); send it as it is."
        refusal = error_answer(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "compressed_body", message, _IDENTITY)
        await refusal(scope, receive, send)


class _HeadIsOut(OSError):
    """As if the client were gone: whatever makes the body stops."""


class _AccessRecord:
    """One request and what was answered to it."""

    def __init__(self, scope: Scope, request_id: str, send: Send) -> None:
        self._scope = scope
        self._request_id = request_id
        self._send = send
        self._began = time.perf_counter()
        self._status = 0

    async def send(self, message: Message) -> None:
        """Pass a message on; the first one of an answer takes the request id along."""
        if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
            self._status = message.get("status", 101)
            MutableHeaders(raw=message.setdefault("headers", []))[HEADER] = self._request_id
            self._observe()
        elif message["type"] == "websocket.close" and not self._status:
            self._status = 403  # what the server answers when the handshake is refused
        await self._send(message)

    async def fail(self, error: Exception, receive: Receive) -> None:
        """Answer an unexpected error, if nothing was yet: 503 while something is missing, or 500."""
        missing = await self._missing()
        if missing:
            _log.warning("request failed, not ready", missing="; ".join(missing.values()))
        else:
            _log.error("request failed", path=self._scope["path"][:_SHOWN_PATH], exc_info=error)
        if self._status:
            return
        if self._scope["type"] == "websocket":
            await self.send({"type": "websocket.close", "code": 1011})
            return
        message = f"Something went wrong here; the server's log has it under request {self._request_id}."
        response = error_answer(500, "internal", message)
        if missing:
            what = f"Not ready: {', '.join(missing)}. An admin's GET /readyz and the server's log say why."
            response = error_answer(503, "unavailable", what, {"Retry-After": "1"})
        await response(self._scope, receive, self.send)

    async def _missing(self) -> dict[str, str]:
        """Say what the database or Redis lacks, tables for instance; empty when they are in order."""
        check: ReadyCheck = self._scope["app"].state.ready_check
        return {name: result for name, result in (await check()).items() if result != OK}

    def log(self) -> None:
        """Write the line."""
        took = round((time.perf_counter() - self._began) * 1000, 1)
        path = self._scope["path"][:_SHOWN_PATH]
        write = _log.debug if path in _QUIET_PATHS else _log.info
        write(f"{self._scope.get('method', 'WS')} {path}", status=self._status or "gone", ms=took)

    def _observe(self) -> None:
        route = getattr(self._scope.get("route"), "path", "none")
        labels = (self._scope.get("method", "WS"), route, str(self._status))
        HTTP_SECONDS.labels(*labels).observe(time.perf_counter() - self._began)
