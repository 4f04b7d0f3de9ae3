"""How a run looks in the terminal: its events as lines, and what its end means as an exit code.

On a terminal each line has its level and a bar in the colour of its stream. Into a pipe goes
what the program printed, bare, on stdout; Tailrun's own words go to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TextIO

from tailrun.ansi import harmless, one_line

if TYPE_CHECKING:
    from tailrun import Event

EXIT_CANCELLED = 130
EXIT_TIMED_OUT = 124

_RESET = "\x1b[0m"
_STYLES = {
    "bold": "\x1b[1m",
    "dim": "\x1b[2m",
    "heading": "\x1b[1;36m",
    "good": "\x1b[1;32m",
    "bad": "\x1b[1;31m",
    "error": "\x1b[31m",
    "warning": "\x1b[33m",
    "stderr": "\x1b[35m",
}
_MARKS = {"succeeded": "✔", "failed": "✘", "cancelled": "■", "timed_out": "⧖"}
_BARS = {"stderr": "┃"}
_BAR = "│"
_JSON_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""What JSON itself lets through raw, and terminals obey."""


def exit_code(event: Event) -> int:
    """Return the exit code that an `end` event means."""
    return outcome_code(event.data.get("status", ""), event.data.get("exit_code"))


def outcome_code(status: str, code: int | None) -> int:
    """Return 0, the program's own exit code, 130 (cancelled), 124 (timed out) or 1."""
    if status == "succeeded":
        return 0
    if status == "cancelled":
        return EXIT_CANCELLED
    if status == "timed_out":
        return EXIT_TIMED_OUT
    return code if code is not None and 0 < code < 256 else 1  # noqa: PLR2004


def duration(seconds: float) -> str:
    """Format a duration: `0.8 s`, `42 s`, `3:07`, `1:02:03`."""
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    """Format a number of bytes: `512 B`, `3.4 kB`, `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":  # noqa: PLR2004
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


@dataclass(frozen=True, slots=True)
class Look:
    """What the terminal can do. `framed`: levels and bars; else bare lines for a pipe."""

    framed: bool
    colours: bool
    timestamps: bool = False
    terminal: bool = False
    """Whether it is one, whatever the look: then nothing but text and colours gets through."""

    def paint(self, text: str, style: str) -> str:
        """Colour a text, if there are colours."""
        return f"{_STYLES[style]}{text}{_RESET}" if self.colours else text


class Renderer:
    """Writes a run's events. Progress updates replace one another: only the last one is printed."""

    def __init__(
        self, look: Look, out: TextIO, notes: TextIO, progress: Callable[[str], None] | None = None
    ) -> None:
        self._look = look
        self._out = out
        self._notes = notes
        self._progress = progress
        self._pending: Event | None = None
        self._step: str | None = None

    def show(self, event: Event) -> None:
        """Print one event."""
        if event.type == "log" and event.data.get("cr"):
            self._update(event)
            return
        self._settle(event)
        if event.type == "log":
            self._log(event)
        elif event.type == "step":
            self._heading(event)
        elif event.type == "status":
            self._status(event)
        elif event.type == "artifact":
            self._note(f"  ↳ {event.data.get('path')}  {size(event.data.get('size') or 0)}", "dim", event)
        elif event.type == "truncated":
            expired = event.data.get("reason") == "expired"
            what = (
                "are deleted: the run is old"
                if expired
                else "were cut out of the log, which is over its limit"
            )
            self._gap(event, what)
        elif event.type == "gap":
            self._gap(event, "were lost")
        elif event.type == "end":
            self._end(event)

    def note(self, text: str, style: str = "dim") -> None:
        """Print a message of the command itself."""
        print(self._look.paint(harmless(text, colours=False), style), file=self._notes, flush=True)

    def _update(self, event: Event) -> None:
        pending = self._pending
        if pending is not None and (pending.stream, pending.step) != (event.stream, event.step):
            self._log(pending)
        self._pending = event
        if self._progress is not None:
            self._progress(event.content or "")

    def _settle(self, event: Event) -> None:
        """Print the pending progress update, unless this event is the line that replaces it."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if self._progress is not None:
            self._progress("")
        if event.type != "log" or (pending.stream, pending.step) != (event.stream, event.step):
            self._log(pending)

    def _log(self, event: Event) -> None:
        if event.stream == "system":
            self._system(event)
            return
        content = event.content or ""
        if not self._look.framed:
            bare = harmless(content, colours=True) if self._look.terminal else content
            print(bare, file=self._out, flush=True)
            return
        level = event.level or "info"
        tint = "stderr" if event.stream == "stderr" else None
        style = level if level in {"error", "warning"} else ("dim" if level == "debug" else tint)
        text = harmless(content, colours=self._look.colours)
        bar = self._look.paint(_BARS.get(event.stream or "", _BAR), tint or "dim")
        tag = self._look.paint(f"{level:>7}", level if level in {"error", "warning"} else "dim")
        body = self._look.paint(text, style) if style else text + (_RESET if "\x1b" in text else "")
        print(f"{self._time(event)}{tag} {bar} {body}", file=self._out, flush=True)

    def _system(self, event: Event) -> None:
        style = event.level if event.level in {"error", "warning"} else "dim"
        mark = "!" if event.level in {"error", "warning"} else "·"
        self._note(f"{mark} {event.content}", style or "dim", event)

    def _heading(self, event: Event) -> None:
        text = event.content or f"{event.step} {event.data.get('status', '')}"
        if event.data.get("status") == "running":
            of = event.data.get("of")
            count = f"  ({event.data.get('n')}/{of})" if of and of > 1 else ""
            self._note(f"{text}{count}", "heading", event)
        else:
            failed = event.level in {"error", "warning"}
            self._note(text, (event.level or "error") if failed else "good", event)

    def _status(self, event: Event) -> None:
        status = event.data.get("status")
        error = event.data.get("error")
        if status == "running" and event.attempt > 1:
            self._note(f"● running, attempt {event.attempt}", "dim", event)
        elif status == "queued" and error:
            due = _clock_time(event.data.get("next_attempt_at"))
            self._note(f"● {error.get('message')}; tried again at {due}", "warning", event)
        else:
            self._note(f"● {status}", "dim", event)

    def _gap(self, event: Event, what: str) -> None:
        events = f"events {event.data.get('from')} to {event.data.get('to')} {what}"
        self._note(f"! {event.content or events}", "warning", event)

    def _end(self, event: Event) -> None:
        status = str(event.data.get("status"))
        error = event.data.get("error") or {}
        code = event.data.get("exit_code")
        why = f": {error.get('message')}" if error and status != "cancelled" else ""
        with_code = f" (exit code {code})" if code is not None else ""
        style = "good" if status == "succeeded" else ("warning" if status == "cancelled" else "bad")
        self._note(f"{_MARKS.get(status, '●')} {status}{why}{with_code}", style, event)

    def _note(self, text: str, style: str, event: Event) -> None:
        text = one_line(text)
        print(f"{self._time(event)}{self._look.paint(text, style)}", file=self._notes, flush=True)

    def _time(self, event: Event) -> str:
        return (
            self._look.paint(_clock_time(event.ts, "milliseconds") + " ", "dim")
            if self._look.timestamps
            else ""
        )


def _clock_time(ts: str | None, precision: str = "seconds") -> str:
    if not ts:
        return "?"
    return datetime.fromisoformat(ts).astimezone().time().isoformat(precision)


def look_of(stream: TextIO, *, timestamps: bool = False, framed: bool | None = None) -> Look:
    """Return what fits a stream: frames and colours on a terminal (NO_COLOR, FORCE_COLOR count)."""
    from rich.console import Console  # noqa: PLC0415 - 60 ms that `--json` need not pay

    console = Console(file=stream)
    frames = console.is_terminal if framed is None else framed
    colours = console.is_terminal and not console.no_color
    return Look(frames, colours, timestamps, stream.isatty())


def as_json(event: Event) -> str:
    """Return an event as a line of JSON, in which every control character is escaped."""
    return json.dumps(event.as_dict(), ensure_ascii=False).translate(_JSON_CONTROLS)


def renderer(*, timestamps: bool = False, framed: bool | None = None) -> Renderer:
    """Return a renderer for this process's stdout; in frames, notes are among the lines."""
    look = look_of(sys.stdout, timestamps=timestamps, framed=framed)
    return Renderer(look, sys.stdout, sys.stdout if look.framed else sys.stderr)
