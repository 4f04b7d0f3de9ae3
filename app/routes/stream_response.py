"""The response of every stream over HTTP: sse-starlette's `EventSourceResponse` around a reader of the hub.

The library owns the life of the response: the headers, HEAD, the wait for the client to leave, and the
grace that a stream gets when the process stops. Ours is what it sends: the reader's payloads as they are,
each of them many joined events; a ping only after a silence; and the cut for a client that does not read.
docs/decisions/0030-sse-starlette.md has the measurements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

import anyio
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.types import Message, Receive, Scope, Send
from uvicorn import Server

from app.core.errors import StorageError
from app.core.telemetry import get_logger
from app.routes.server import abort, taken
from app.stream.formats import Format
from app.stream.reader import Reader

_log = get_logger(__name__)

OpenReader = Callable[[], AbstractContextManager[Reader]]

SEND_TIMEOUT_S = 30.0
"""How long a watcher may not read before it is disconnected."""
_FIRST = b"retry: 2000\n\n"
_PING = b": ping\n\n"
_GRACE_S = 4.5
"""How long a stream may go on once the process stops: less than the server waits (`main._GRACEFUL_S`)."""

if Server.handle_exit is AppStatus.handle_exit and AppStatus.original_handler is not None:
    Server.handle_exit = AppStatus.original_handler  # importing the library has replaced it for every server


class StreamResponse(EventSourceResponse):
    """Sends what the reader has; the reader is open exactly while this is sent.

    A stream that ends before its reader has finished ends cleanly, for a follower continues with its
    last id; a download (`whole`) is cut, or a part would pass for all of it.
    """

    def __init__(
        self,
        open_reader: OpenReader,
        form: Format,
        *,
        whole: bool,
        ping_s: float,
        send_timeout_s: float,
        draining: asyncio.Event,
        headers: dict[str, str] | None = None,
    ) -> None:
        fixed = {"Content-Type": form.media_type, "X-Content-Type-Options": "nosniff"}
        super().__init__(
            iter(()),  # the payloads come from the reader, which is opened when they are sent
            headers=fixed | (headers or {}),
            ping=0,  # the library's pings go out at fixed times, whatever else was sent
            client_close_handler_callable=self._close,
            shutdown_event=draining,  # pyright: ignore[reportArgumentType] - asyncio's has the same methods
            shutdown_grace_period=_GRACE_S,
        )
        del self.headers["Connection"]  # the server's business
        self._open_reader = open_reader
        self._whole = whole
        self._sse = form is Format.SSE
        self._ping_s = ping_s
        self._send_timeout_s = send_timeout_s
        self._draining = draining
        self._scope: Scope = {}
        self._reader: Reader | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream to its end."""
        self._scope = scope
        await super().__call__(scope, receive, send)

    async def _listen_for_exit_signal(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Wait for our own server's signal; the library's would poll for whichever server it finds."""
        await self._draining.wait()

    async def _stream_response(self, send: Send) -> None:
        """Send the reader's payloads, and the end if it is one."""
        with self._open_reader() as reader, anyio.CancelScope() as sending:
            self._reader = reader
            watchdog = Watchdog(
                self._ping_s if self._sse else None,
                self._send_timeout_s,
                on_idle=reader.poke,
                on_stalled=lambda: self._cut(sending),
                taken=lambda: taken(self._scope),
            )
            try:
                await self._send_all(reader, watchdog, send)
                if reader.finished or not (self._whole and abort(self._scope)):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            except StorageError as error:
                _log.warning("stream cut", error=str(error))
                abort(self._scope)
            finally:
                self.active = False
                watchdog.stop()

    async def _send_all(self, reader: Reader, watchdog: Watchdog, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": _FIRST if self._sse else b"", "more_body": True})
        while (payload := await reader.next()) is not None:
            if not payload:
                if not watchdog.idle():
                    continue
                payload = _PING
            watchdog.sending()
            await send({"type": "http.response.body", "body": payload, "more_body": True})
            watchdog.sent()

    async def _close(self, message: Message) -> None:
        """End the stream of a client that left, without cancelling a query that others may wait for."""
        if self._reader is not None:
            self._reader.close()
            await anyio.sleep_forever()  # until `_stream_response` returns, which cancels this

    def _cut(self, sending: anyio.CancelScope) -> None:
        """Free everything that a client who does not read holds."""
        _log.info("stream cut: its reader does not read")
        abort(self._scope)
        sending.cancel()


class Watchdog:
    """Calls `on_idle` after `idle_s` without a send, `on_stalled` once nothing is taken for `stalled_s`.

    `taken` says how many bytes the peer has taken so far: a send may take long while that grows.
    """

    def __init__(
        self,
        idle_s: float | None,
        stalled_s: float,
        *,
        on_idle: Callable[[], None],
        on_stalled: Callable[[], None],
        taken: Callable[[], int] = lambda: 0,
    ) -> None:
        self.stalled = False
        self._taken, self._taken_before = taken, 0
        self._idle_s, self._stalled_s = idle_s, stalled_s
        self._on_idle, self._on_stalled = on_idle, on_stalled
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._sending_since: float | None = None
        self._timer = self._loop.call_later(self._round(), self._look)

    def sending(self) -> None:
        """A send begins."""
        self._sending_since = self._loop.time()

    def sent(self) -> None:
        """The send is done."""
        self._sent_at = self._loop.time()
        self._sending_since = None

    def idle(self) -> bool:
        """Whether nothing was sent for so long that a ping is due."""
        return self._idle_s is not None and self._loop.time() - self._sent_at >= self._idle_s

    def stop(self) -> None:
        """End the timer."""
        self._timer.cancel()

    def _round(self) -> float:
        return min(self._idle_s or self._stalled_s, self._stalled_s)

    def _look(self) -> None:
        now = self._loop.time()
        due = now + self._round()
        if self._sending_since is not None:
            if (by_now := self._taken()) != self._taken_before:
                self._taken_before, self._sending_since = by_now, now
            due = min(due, self._sending_since + self._stalled_s)
            if due <= now:
                self.stalled = True
                self._on_stalled()
                return
        elif self._idle_s is not None:
            due = min(due, self._sent_at + self._idle_s)
            if due <= now:
                self._on_idle()
                due = now + self._round()
        self._timer = self._loop.call_at(due, self._look)
