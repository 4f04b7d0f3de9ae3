"""Server-sent events: bytes in, frames out. The one parser of both clients.

Follows the event-stream grammar of the HTML standard (section 9.2.6), cut anywhere:
the pieces may end within a character, a line end or a field. Pure: no I/O, no clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"
_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Frame:
    """One dispatched frame. `id` is the last one seen, as the standard wants; None: none yet."""

    data: str
    id: str | None = None
    event: str = "message"


class SSEParser:
    """Turns a byte stream, in pieces of any size, into frames."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self._rest = bytearray()
        """What came since the last line end: joined and searched only once there is another."""
        self._started = False
        self._data: list[str] = []
        self._event = ""
        self._id: str | None = None

    def feed(self, piece: bytes) -> list[Frame]:
        """Take the next bytes; return the frames that they complete."""
        self._rest += piece
        if b"\n" not in piece and b"\r" not in piece and not self._rest.endswith(b"\r", 0, -len(piece)):
            return []
        buffer = bytes(self._rest)
        if not self._started:
            self._started = True
            buffer = buffer.removeprefix(_BOM)
        frames: list[Frame] = []
        start = 0
        for end in _LINE_END.finditer(buffer):
            if end.group() == b"\r" and end.end() == len(buffer):
                break  # perhaps half of a \r\n
            frame = self._line(buffer[start : end.start()])
            start = end.end()
            if frame is not None:
                frames.append(frame)
        self._rest = bytearray(buffer[start:])
        return frames

    def _line(self, raw: bytes) -> Frame | None:
        if not raw:
            return self._dispatch()
        name, _, value = raw.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "event":
            self._event = value
        elif name == "retry" and value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS:
            self.retry_ms = int(value)
        return None

    def _dispatch(self) -> Frame | None:
        data, event = self._data, self._event
        self._data, self._event = [], ""
        return Frame("\n".join(data), self._id, event or "message") if data else None
