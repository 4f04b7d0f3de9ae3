"""How a run looks in the terminal: its events as lines, and what its end means as an exit code.

On a terminal each line has its level and a bar in the colour of its stream. Into a pipe goes
what the program printed, bare, on stdout; Tailrun's own words go to stderr.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
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
_WORDS = {"model", "reasoning"}
"""Streams of what a model says."""
_SHOWN_LINES = 5
"""Of the output of a call that failed."""
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


def spent(tokens: int | None, usd: float | None) -> str:
    """Format what an agent took: `12 345 tokens, $0.0123`; without a cost where the price is unknown."""
    cost = f", ${usd:.4f}" if usd is not None else ""
    return f"{tokens or 0} tokens{cost}"


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


@dataclass(slots=True)
class _Call:
    heading: str
    lines: int = 0
    last: deque[Event] = field(default_factory=lambda: deque(maxlen=_SHOWN_LINES))


class Renderer:
    """Writes a run's events. Progress updates replace one another: only the last one is printed."""

    def __init__(
        self,
        look: Look,
        out: TextIO,
        notes: TextIO,
        progress: Callable[[str], None] | None = None,
        *,
        fold: bool = False,
    ) -> None:
        self._look = look
        self._out = out
        self._notes = notes
        self._progress = progress
        self._pending: Event | None = None
        self._open: tuple[str | None, ...] | None = None
        """The line of a model's words that has been begun and not ended."""
        self._spent = ""
        self._fold = fold
        self._ways: dict[str, Callable[[Event], None]] = {
            "log": self._log,
            "step": self._heading,
            "status": self._status,
            "artifact": self._artifact,
            "truncated": self._truncated,
            "gap": lambda event: self._gap(event, "were lost"),
            "end": self._end,
        }
        self._calls: dict[str, _Call] = {}
        """Calls of an agent that are folded, and have not ended."""

    def show(self, event: Event) -> None:
        """Print one event."""
        if event.type == "log" and event.data.get("cr"):
            self._update(event)
            return
        self._settle(event)
        if event.type == "log" and event.stream in _WORDS:
            self._words(event)
            return
        self.end_line()
        if not self._folds(event):
            self._ways.get(event.type, self._of_agent)(event)

    def note(self, text: str, style: str = "dim") -> None:
        """Print a message of the command itself."""
        self.end_line()
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

    def _words(self, event: Event) -> None:
        """Print a piece of what a model says as it comes: its line continues while it is `split`."""
        split, line = bool(event.data.get("split")), (event.stream, str(event.data.get("call")))
        goes_on = self._open == line
        if not goes_on:
            self.end_line()
        content = event.content or ""
        if event.stream == "reasoning":
            if not self._look.framed:
                return
            content = self._look.paint(harmless(content, colours=False), "dim")
        elif self._look.terminal or self._look.framed:
            content = harmless(content, colours=False)
        if not goes_on and self._look.framed:
            content = f"{self._time(event)}{self._look.paint('  model ' + _BAR, 'dim')} {content}"
        print(content, end="" if split else "\n", file=self._out, flush=True)
        self._open = line if split else None

    def end_line(self) -> None:
        """End the line of a model's words that something else comes behind."""
        if self._open is not None:
            print(file=self._out, flush=True)
            self._open = None

    def _folds(self, event: Event) -> bool:
        """Fold an agent's call to one line at its end; of one that failed the last lines are shown."""
        step = event.step
        if not self._fold or step is None or event.type not in {"log", "step", "artifact", "usage"}:
            return False
        call = self._calls.get(step)
        if event.type == "step" and event.data.get("call") is not None:
            if event.data.get("status") == "running":
                self._calls[step] = _Call((event.content or step).removeprefix("▸ "))
                return True
            if call is None:
                return False
            del self._calls[step]
            self._call_ended(call, event)
            return True
        if call is not None and event.type == "log" and event.stream != "system":
            call.lines += 1
            call.last.append(event)
            return True
        return False

    def _call_ended(self, call: _Call, event: Event) -> None:
        failed = event.level in {"error", "warning"}
        for line in call.last if failed else ():
            self._log(line)
        took = f" · {duration(event.data['duration_s'])}" if "duration_s" in event.data else ""
        lines = f" · {call.lines} line{'s' * (call.lines > 1)}" if call.lines else ""
        why = f" · {event.content.partition(': ')[2]}" if failed and event.content else ""
        self._note(
            f"{'✗' if failed else '✓'} {call.heading}{why or took}{lines}",
            "error" if failed else "good",
            event,
        )

    @property
    def busy(self) -> str | None:
        """The call of an agent that is under way, for whoever shows that something happens."""
        return next((call.heading for call in self._calls.values()), None)

    def _of_agent(self, event: Event) -> None:
        data, text = event.data, event.content
        if event.type == "usage":
            if "spent_tokens" in data:
                self._spent = spent(data.get("spent_tokens"), data.get("spent_usd"))
        elif event.type == "plan":
            done = data.get("done") or 0
            for number, item in enumerate(data.get("items") or ()):
                self._note(f"  {'☑' if number < done else '☐'} {item}", "dim", event)
        elif event.type == "message":
            self._note(f"» {data.get('by')}: {text}", "bold", event)
        elif event.type == "approval":
            decided = data.get("status") in {"approved", "denied", "expired"}
            self._note(f"? {text or event.step}", "dim" if decided else "warning", event)
        elif event.type == "model" and (text or data.get("status") in {"retry", "lost", "failed"}):
            self._note(f"! {text or 'model call ' + str(data.get('status'))}", "warning", event)

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
        elif status == "waiting":
            what = {"approval": "your approval", "answer": "your answer"}.get(
                str(event.data.get("waiting_for")), "an answer"
            )
            self._note(f"● waiting for {what}", "warning", event)
        elif status == "queued" and error:
            due = _clock_time(event.data.get("next_attempt_at"))
            self._note(f"● {error.get('message')}; tried again at {due}", "warning", event)
        else:
            self._note(f"● {status}", "dim", event)

    def _artifact(self, event: Event) -> None:
        self._note(f"  ↳ {event.data.get('path')}  {size(event.data.get('size') or 0)}", "dim", event)

    def _truncated(self, event: Event) -> None:
        expired = event.data.get("reason") == "expired"
        cut = "were cut out of the log, which is over its limit"
        self._gap(event, "are deleted: the run is old" if expired else cut)

    def _gap(self, event: Event, what: str) -> None:
        events = f"events {event.data.get('from')} to {event.data.get('to')} {what}"
        self._note(f"! {event.content or events}", "warning", event)

    def _end(self, event: Event) -> None:
        status = str(event.data.get("status"))
        error = event.data.get("error") or {}
        code = event.data.get("exit_code")
        why = f": {error.get('message')}" if error and status != "cancelled" else ""
        with_code = f" (exit code {code})" if code is not None else ""
        with_code += f" · {self._spent}" if self._spent else ""
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


def renderer(*, timestamps: bool = False, framed: bool | None = None, fold: bool = False) -> Renderer:
    """Return a renderer for this process's stdout; in frames, notes are among the lines."""
    look = look_of(sys.stdout, timestamps=timestamps, framed=framed)
    notes = sys.stdout if look.framed else sys.stderr
    return Renderer(look, sys.stdout, notes, fold=fold and look.framed)
