"""Our own streaming response: what a reader hands out goes to the client, payload by payload.

Owns the life of one HTTP stream: first bytes at once, a ping when it is silent, the end when
the client leaves, when the run ends or when the process drains, and the cut when the client
does not read. docs/decisions/0003-own-sse-response.md says why it is not sse-starlette's.

One timer per stream: says when it was silent for long, and when its reader does not read.

It is re-armed lazily, so that sending a payload costs two clock readings and no timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.core.errors import StorageError
from app.core.telemetry import get_logger
from app.routes.server import abort
from app.stream.formats import Format
from app.stream.reader import Reader

_log = get_logger(__name__)

OpenReader = Callable[[], AbstractContextManager[Reader]]

_FIRST = b"retry: 2000\n\n"
_PING = b": ping\n\n"


class StreamResponse(Response):
    """Sends what the reader has; the reader is open exactly while this is sent.

    A stream that ends before its reader has finished ends cleanly, for a follower goes on with its
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
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._open_reader = open_reader
        self._whole = whole
        self._sse = form is Format.SSE
        self._ping_s = ping_s
        self._send_timeout_s = send_timeout_s
        # init_headers adds no length where there is no body.
        self.init_headers(
            {
                "Content-Type": form.media_type,
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                "X-Content-Type-Options": "nosniff",
                **(headers or {}),
            }
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream to its end."""
        with self._open_reader() as reader:
            leaving = asyncio.ensure_future(_until_gone(receive, reader))
            watchdog = Watchdog(
                self._ping_s if self._sse else None,
                self._send_timeout_s,
                on_idle=reader.poke,
                on_stalled=_cut(scope, reader),
            )
            try:
                await self._send_all(reader, watchdog, send)
                if reader.finished or not (self._whole and abort(scope)):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            except StorageError as error:
                _log.warning("stream cut", error=str(error))
                abort(scope)
            except asyncio.CancelledError:
                if not watchdog.stalled:
                    raise
            finally:
                watchdog.stop()
                leaving.cancel()

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


async def _until_gone(receive: Receive, reader: Reader) -> None:
    """End the stream when its client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.close()


def _cut(scope: Scope, reader: Reader) -> Callable[[], None]:
    """Return what frees everything that a client who does not read holds."""
    serving = asyncio.current_task()

    def cut() -> None:
        _log.info("stream cut: its reader does not read")
        reader.close()
        if not abort(scope) and serving is not None:
            serving.cancel()

    return cut


class Watchdog:
    """Calls `on_idle` after `idle_s` without a send, `on_stalled` once a send takes `stalled_s`."""

    def __init__(
        self,
        idle_s: float | None,
        stalled_s: float,
        *,
        on_idle: Callable[[], None],
        on_stalled: Callable[[], None],
    ) -> None:
        self.stalled = False
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
