"""From the bytes of a pod's log to lines, each with where it was in there: its `src`.

Two ways of writing come through the kubelet, which puts a time before each line:

    wrapped   2026-11-20T12:00:00.123456789Z {"n":7,"s":"o","t":…,"d":"text"}     our wrapper's frames
    raw       2026-11-20T12:00:00.123456789Z text                                 any other image

A log is written by untrusted code: it is data, of bounded length, whatever its content.
A `src` is `<step run>:<frame>` or `<step run>@<nanoseconds>+<count at that time>`; a reader
that continues a log skips what is not beyond it. So lines come once, however often a log is read again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from tailrun.process.levels import level_of
from tailrun.process.lines import Line, Stream
from tailrun.process.output import LineSplitter

_STREAMS = {"o": Stream.STDOUT, "e": Stream.STDERR}
_SRC = re.compile(r"(\d+)(?::(\d+)|@(\d+)\+(\d+))")
_ODD = re.compile("[\r\0\ufeff\ud800-\udfff]")
_FRACTION = 9
_SECOND_CHARS = 19
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Cursor:
    """How far a log is read. FrameReader: the number of the last one; raw: nanoseconds, and how many then."""

    n: int = 0
    ns: int = 0
    count: int = 0

    @classmethod
    def parse(cls, src: str | None, step_run: int) -> Cursor:
        """Read a `src`; one of another run of the step counts as none."""
        found = _SRC.fullmatch(src or "")
        if found is None or int(found[1]) != step_run:
            return cls()
        return cls(int(found[2] or 0), int(found[3] or 0), int(found[4] or 0))


@dataclass(frozen=True, slots=True)
class Gap:
    """Here `lost` lines are missing; 0: an unknown number."""

    lost: int


@dataclass(frozen=True, slots=True)
class News:
    """A report of the wrapper: `synced` or `failed`."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Exit:
    """The wrapper's last frame: what it counted. The exit code that counts is the container's."""

    report: dict[str, Any]


Item = Line | Gap | News | Exit


@dataclass(slots=True)
class FrameReader:
    """Reads a wrapped log. `cursor.n` moves only with whole frames."""

    step_run: int
    cursor: Cursor
    complete: bool = False
    """Whether the exit frame was seen: nothing follows."""
    _next: int = 0
    _splitters: dict[str, LineSplitter] = field(default_factory=dict[str, LineSplitter])
    _open: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        """A cursor is behind a line, so the next frame is expected, or a gap is reported."""
        self._next = self.cursor.n + 1

    def again(self) -> None:
        """Called when the log is read again: numbers show what is old."""

    def read(self, stamped: Iterable[bytes], now: float) -> list[Item]:
        """Return what the next lines of the log mean; `now` is a monotonic time in seconds."""
        out: list[Item] = []
        for line in stamped:
            frame = _decoded(line)
            if frame is None or frame["n"] < self._next:
                continue
            if frame["n"] > self._next:
                out.append(Gap(frame["n"] - self._next))
                self._splitters.clear()
                self._open.clear()
            self._next = frame["n"] + 1
            out += self._items(frame, now)
            self.cursor.n = frame["n"]
        return out

    def _items(self, frame: dict[str, Any], now: float) -> list[Item]:
        letter, text = frame.get("s"), frame.get("d")
        if letter in _STREAMS and isinstance(text, str):
            return list(self._lines(letter, text, frame, now))
        if isinstance(frame.get("k"), str):
            return [News(frame["k"], str(frame.get("m", "")))]
        if isinstance(frame.get("x"), dict):
            self.complete = True
            return [Exit(frame["x"])]
        return []

    def _lines(self, letter: str, text: str, frame: dict[str, Any], now: float) -> list[Line]:
        src = f"{self.step_run}:{frame['n']}"
        if "p" not in frame and letter not in self._open and _ODD.search(text) is None:
            return [Line(_STREAMS[letter], text, level_of(text), src=src)]
        if letter not in self._splitters:
            self._splitters[letter] = LineSplitter(_STREAMS[letter])
        splitter = self._splitters[letter]
        raw = text.encode("utf-8", "replace")
        if "p" in frame:
            self._open.add(letter)
            return [line for line in splitter.feed(raw, now) if line.cr or line.split]
        self._open.discard(letter)
        lines = splitter.feed(raw + b"\n", now)
        return [*lines[:-1], lines[-1]._replace(src=src)] if lines else []


@dataclass(slots=True)
class RawLines:
    """Reads the log of an image without our wrapper: one stream, told apart by time and count.

    Times are the node's; they may repeat, and step back. So after `again` everything up to the very
    line of the cursor is skipped, and what then comes is new whatever its time.
    """

    step_run: int
    cursor: Cursor
    complete: bool = False
    _ns: int = 0
    _seen: int = 0
    _skipping: bool = True
    _splitter: LineSplitter = field(default_factory=lambda: LineSplitter(Stream.STDOUT))

    def again(self) -> None:
        """Take note that the log is read again, from the second of the cursor or from its start."""
        self._ns = self._seen = 0
        self._skipping = True

    def read(self, stamped: Iterable[bytes], now: float) -> list[Item]:
        """Return the lines that are beyond the cursor."""
        out: list[Item] = []
        for line in stamped:
            stamp, _, text = line.partition(b" ")
            ns = nanoseconds(stamp)
            if ns is None:
                continue
            self._seen = self._seen + 1 if ns == self._ns else 1
            self._ns = ns
            if self._skipping and self._is_old(ns, out):
                continue
            self.cursor.ns, self.cursor.count = ns, self._seen
            src = f"{self.step_run}@{ns}+{self._seen}"
            lines = self._splitter.feed(text + b"\n", now)
            out += lines[:-1]
            out += [line._replace(src=src) for line in lines[-1:]]
        return out

    def _is_old(self, ns: int, out: list[Item]) -> bool:
        """Whether the cursor was not passed yet; a cursor that is not in the log any more is a gap."""
        at = self.cursor
        if (ns, self._seen) == (at.ns, at.count):
            self._skipping = False
            return True
        if ns < at.ns or (ns == at.ns and self._seen < at.count):
            return True
        self._skipping = False
        if at.ns:
            out.append(Gap(0))
        return False


def nanoseconds(stamp: bytes) -> int | None:
    """Return a kubelet's time (RFC 3339, zero to nine decimals, any zone) since the epoch; None: none."""
    try:
        text = stamp.decode("ascii")
        second, rest = text[:_SECOND_CHARS], text[_SECOND_CHARS:]
        digits = ""
        if rest.startswith("."):
            digits = rest[1:].rstrip("Z").partition("+")[0].partition("-")[0]
            rest = rest[1 + len(digits) :]
        moment = datetime.fromisoformat(second + rest.replace("Z", "+00:00"))
        whole = int((moment - _EPOCH).total_seconds())
        return whole * 10**_FRACTION + int(digits[:_FRACTION].ljust(_FRACTION, "0") or 0)
    except (ValueError, TypeError):
        return None


def _decoded(line: bytes) -> dict[str, Any] | None:
    """Return a frame; None for whatever is none: a torn line, or a program that writes beside the wrapper."""
    at = line.find(b" ")
    try:
        frame = orjson.loads(line[at + 1 :])
    except orjson.JSONDecodeError:
        return None
    if not isinstance(frame, dict) or type(frame.get("n")) is not int or frame["n"] < 1:  # true is an int
        return None
    return frame
