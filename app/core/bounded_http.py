"""What a peer may send before anybody knows who it is: bounds on uvicorn's HTTP protocol.

uvicorn's parser joins a line for as long as it grows, and no clock runs while a request is on its
way, so that one client can fill the memory, or hold descriptors without end. Here bytes and lines
that are not body are counted as they come, and a clock runs for the head, for a body that stalls,
and for what follows an answer that came before the body's end.

    connected ──> head ──> body ──> answer ──> idle (uvicorn's keep-alive) ──> head …

The API and the worker's small server both use this class and no other parser. WebSockets begin as
HTTP, so the same bounds hold for their handshake; `websockets` itself bounds its frames.
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Callable
from typing import ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_TARGET_BYTES = 60_000
"""A request's target. The longest that is of use here names 1 000 dead letters; the parser ends at 65 535."""
MAX_HEADER_BYTES = 65_536
"""Names and values of all headers and trailers together."""
MAX_HEADERS = 100
MAX_LINE_BYTES = 8_000
"""One header's name and value; `websockets` takes little more in a handshake."""
_FRAMING_PER_BYTE = 16
"""Bytes of chunk framing that a byte of body may take; chunks of one byte take 5."""
_SLOWEST_BODY = 100
"""Bytes of body that must come in a second, on average over `body_timeout_s`."""


class _Refused(Exception):
    """Ends the parser's work on a request that is over a bound."""


class BoundedHttp(HttpToolsProtocol):
    """HTTP/1.1 whose requests have a largest size and a longest time."""

    head_timeout_s: ClassVar[float] = 15.0
    body_timeout_s: ClassVar[float] = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start the clock: a connection without a request is not kept."""
        super().connection_made(transport)
        self._in_head = self._in_body = False
        self._refusal: tuple[int, str] | None = None
        self._begin_head()
        self._timer: asyncio.TimerHandle | None = None
        self._start(self.head_timeout_s, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    # -- what comes ---------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it is too much."""
        if self.transport.is_closing():
            return
        body_before, self._began = self._body_bytes, False
        super().data_received(data)
        if self._upgraded():
            self._stop()
            return
        if not self._began:
            self._other_bytes += len(data) - (self._body_bytes - body_before)
        if self._other_bytes > MAX_TARGET_BYTES + MAX_HEADER_BYTES + _FRAMING_PER_BYTE * self._body_bytes:
            self._refusal = self._refusal or (431, "The request has more header bytes than are taken here.")
            self.send_400_response("")
        elif self._timer is None and not self.transport.is_closing():
            self._keep_time()

    def on_message_begin(self) -> None:
        """Count anew."""
        super().on_message_begin()
        self._begin_head()
        self._began = self._in_head = True

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            self._refuse(414, f"The request's target is longer than {MAX_TARGET_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer."""
        self._headers += 1
        self._header_bytes += len(name) + len(value)
        if self._headers > MAX_HEADERS:
            self._refuse(431, f"The request has more than {MAX_HEADERS} headers.")
        if len(name) + len(value) > MAX_LINE_BYTES or self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(
                431,
                f"A header may have {MAX_LINE_BYTES} bytes, and all of them {MAX_HEADER_BYTES} together.",
            )
        if not self._in_body:  # trailers are not passed on
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request over; its body may be slow, but has to make progress."""
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        self._body_seen = 0
        self._stop()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for no more of this request."""
        self._in_body = False
        self._stop()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give who was answered early a moment to notice, and no longer, whatever else they send."""
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._start(self.timeout_keep_alive, self.transport.close)

    # -- what is refused ----------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Answer what can't be read, or is too much; cut the connection where an answer has begun."""
        self._stop()
        status, text = self._refusal or (400, msg)
        cycle = self._answering()
        if cycle is not None and (cycle.response_started or not self._in_body):
            self.transport.close()  # another answer is on its way, into which this one would be mixed
            return
        body = f"{text}\n".encode()
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
            "content-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _refuse(self, status: int, text: str) -> None:
        self._refusal = self._refusal or (status, text)
        raise _Refused(text)

    # -- the clock ----------------------------------------------------------------------

    def _begin_head(self) -> None:
        self._headers = self._header_bytes = self._other_bytes = self._body_bytes = 0

    def _keep_time(self) -> None:
        """Start the clock of what is half here; between an answer and the next head it is uvicorn's."""
        if self._in_body:
            self._start(self.body_timeout_s, self._body_late)
        elif self._answering() is None:
            self._start(self.head_timeout_s, self._head_late)

    def _start(self, seconds: float, late: Callable[[], None]) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _answering(self) -> RequestResponseCycle | None:
        """Return the answer that is on its way, if any."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return None if cycle is None or cycle.response_complete else cycle

    def _upgraded(self) -> bool:
        return self.transport.get_protocol() is not self

    def _head_late(self) -> None:
        """Close what has not become a request."""
        self._timer = None
        if self._in_head:
            self._refusal = (408, f"The request did not come within {self.head_timeout_s:g} s.")
            self.send_400_response("")
        else:
            self.transport.close()

    def _body_late(self) -> None:
        """Go on waiting while the body comes, or while it is we who do not read it."""
        came, self._body_seen = self._body_bytes - self._body_seen, self._body_bytes
        if self.flow.read_paused or came >= _SLOWEST_BODY * self.body_timeout_s:
            self._start(self.body_timeout_s, self._body_late)
            return
        self._refusal = (408, f"The body stalled: {came} bytes came in {self.body_timeout_s:g} s.")
        self.send_400_response("")
