"""From the bytes of a pipe to lines: where lines end, what a progress bar is, what is too long.

A splitter belongs to one pipe of one program. The lines it makes do not depend on where reads
happened to cut the bytes. Only a line feed ends a line (a carriage return before it is dropped;
U+2028 and its like stay text, and so do blanks at a line's end: they are columns of a table, or a
line break of Markdown). A carriage return alone is a progress update, a line marked `cr`
that a later one replaces; at most five a second are kept, the last one always, and the text
before a line feed is an ordinary line. So a reader that drops every `cr` line that
is followed by another line of the same stream sees what a terminal would show.

The bulk of the work is done per read, not per line: one search, one decode, one split.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import repeat

from tailrun.process.levels import level_of
from tailrun.process.lines import Level, Line, Stream

MAX_LINE_BYTES = 1 << 20
"""Longer lines come in pieces, each but the last marked `split`."""
UPDATE_S = 0.2
"""Least time between two progress updates of a stream."""
_LINE: Callable[[tuple[Stream, str, Level, bool, bool, None]], Line] = partial(tuple.__new__, Line)
"""What `Line` itself calls, without a Python frame for each line that is printed."""
_NO = repeat(False)
_NOWHERE = repeat(None)


class LineSplitter:
    """Splits one stream. `now` is a monotonic time in seconds; it only paces progress updates."""

    def __init__(self, stream: Stream, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._stream = stream
        self._max = max_line_bytes
        self._rest = b""
        """What came since the last line feed or carriage return."""
        self._more = bytearray()
        """Its continuation, while no line end comes: appending must not copy a long line."""
        self._open: Level | None = None
        """The level of the line whose first pieces are out already."""
        self._held: bytes | None = None
        """Ended by a carriage return; the next byte decides: line end or progress."""
        self._held_at = 0.0
        self._held_shown = False
        self._waiting: bytes | None = None
        """An update that came too soon after the last one."""
        self._updated_at = float("-inf")
        self.replaced = False
        """Whether something was no text, and U+FFFD was put in its place."""

    def feed(self, data: bytes, now: float) -> list[Line]:
        """Take the next bytes; return the lines that they complete."""
        if self._held is None and b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        if self._held is None and b"\r" not in data:
            end = data.rfind(b"\n")
            if end < 0:
                self._more += data
                return self._overflow()
            block = b"".join((self._rest, self._more, data[:end]))
            self._keep(data[end + 1 :])
            out = self._lines(block)
            out += self._overflow()
            return out
        return self._feed_returns(data, now)

    @property
    def due(self) -> float | None:
        """When `tick` will have an update to show; None if it will not."""
        if self._held and not self._held_shown and self._open is None:
            return max(self._updated_at, self._held_at) + UPDATE_S
        return None if self._waiting is None else self._updated_at + UPDATE_S

    def tick(self, now: float) -> list[Line]:
        """Return the update that is due, if any: a bar that stops shows its last state."""
        due = self.due
        if due is None or now < due:
            return []
        update = self._waiting
        if self._held and not self._held_shown:
            self._held_shown, update = True, self._held
        return [] if update is None else self._show(update, now)

    def finish(self) -> list[Line]:
        """Return what the stream's end leaves: the last line, if no line feed ended it."""
        last = self._held if self._held is not None else self._rest + self._more
        self._keep(b"")
        self._held = self._waiting = None
        return self._lines(last) if last or self._open is not None else []

    def _keep(self, rest: bytes) -> None:
        self._rest = rest
        self._more = bytearray()

    def _lines(self, block: bytes) -> list[Line]:
        """Make lines of complete ones, joined by line feeds."""
        self._waiting = None
        if len(block) > self._max:
            parts = block.split(b"\n")
            if max(map(len, parts)) > self._max:
                return [line for part in parts for line in self._long(part)]
        stream, texts = self._stream, self._decode(block).split("\n")
        fields = zip(repeat(stream), texts, map(level_of, texts), _NO, _NO, _NOWHERE, strict=False)
        out = list(map(_LINE, fields))
        if self._open is not None:
            out[0] = Line(stream, out[0].content, self._open)
            self._open = None
        return out

    def _long(self, part: bytes) -> list[Line]:
        """Make one line of any length."""
        out = list[Line]()
        while len(part) > self._max:
            piece, part = self._cut(part)
            out.append(piece)
        return out + self._lines(part)

    def _overflow(self) -> list[Line]:
        """Hand out whole pieces of a line that is too long already."""
        out = list[Line]()
        if len(self._rest) + len(self._more) <= self._max:
            return out
        part = self._rest + self._more
        while len(part) > self._max:
            piece, part = self._cut(part)
            out.append(piece)
        self._keep(part)
        return out

    def _cut(self, part: bytes) -> tuple[Line, bytes]:
        """Cut off a first piece, never inside of a character."""
        at = self._max
        while at > self._max - 3 and part[at] & 0xC0 == 0x80:  # noqa: PLR2004 - a continuation byte
            at -= 1
        text = self._decode(part[:at])
        if self._open is None:
            self._open = level_of(text)
        return Line(self._stream, text, self._open, split=True), part[at:]

    def _feed_returns(self, data: bytes, now: float) -> list[Line]:
        """The same where carriage returns play a part."""
        out = list[Line]()
        if self._held is not None:
            data = data.lstrip(b"\r")
            if not data:
                return out
            out += self._decide(data, now)
            if data[:1] == b"\n":
                data = data[1:]
        *lines, rest = b"".join((self._rest, self._more, data)).split(b"\n")
        self._keep(b"")
        for line in lines:
            *updates, last = line.rstrip(b"\r").split(b"\r")
            for update in updates:
                out += self._update(update, now)
            out += self._lines(last)
        *updates, last = rest.rstrip(b"\r").split(b"\r")
        for update in updates:
            out += self._update(update, now)
        if rest.endswith(b"\r"):
            out += self._hold(last, now)
        else:
            self._keep(last)
            out += self._overflow()
        return out

    def _hold(self, update: bytes, now: float) -> list[Line]:
        """Keep what a carriage return ended as the very last byte of a read."""
        out = list[Line]()
        while len(update) > self._max:
            piece, update = self._cut(update)
            out.append(piece)
        self._held, self._held_at, self._held_shown = update, now, False
        return out

    def _decide(self, data: bytes, now: float) -> list[Line]:
        """The byte after the carriage return is here: a line end makes it a line, else progress."""
        held, self._held = self._held or b"", None
        if data[:1] == b"\n":
            return self._lines(held)
        return [] if self._held_shown else self._update(held, now)

    def _update(self, update: bytes, now: float) -> list[Line]:
        """Show a progress update, or let it wait for its turn."""
        if self._open is not None or len(update) > self._max:
            return self._long(update)
        if not update.strip():
            return []
        if now < self._updated_at + UPDATE_S:
            self._waiting = update
            return []
        return self._show(update, now)

    def _show(self, update: bytes, now: float) -> list[Line]:
        self._updated_at, self._waiting = now, None
        text = self._decode(update).rstrip()
        return [Line(self._stream, text, level_of(text), cr=True)] if text else []

    def _decode(self, data: bytes) -> str:
        """Decode UTF-8; what is none becomes U+FFFD, and so does NUL, which no database text holds."""
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self.replaced = True
            text = data.decode("utf-8", "replace")
        if "\0" not in text:
            return text
        self.replaced = True
        return text.replace("\0", "\ufffd")
