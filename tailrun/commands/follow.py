"""Following a run in the terminal: its events as they come, a spinner while there are none.

Ctrl-C leaves the run alone: it continues, and the command prints how to come back and how to cancel.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailrun.ansi import one_line
from tailrun.commands.render import Renderer, as_json, duration, exit_code, outcome_code, renderer

if TYPE_CHECKING:
    from tailrun import Client, Event, TailrunError
    from tailrun.commands.agents import Answers

EXIT_DETACHED = 130
_QUIET_TYPES = frozenset({"status", "step"})
"""Events after which nothing may come for a while: the spinner turns."""
_WORDS = {"model", "reasoning"}


@dataclass(frozen=True, slots=True)
class FollowView:
    """Which events to follow, and how to print them; `on_event` is called after each."""

    as_json: bool = False
    timestamps: bool = False
    framed: bool | None = None
    tail: int | None = None
    level: str | None = None
    stream: str | None = None
    on_event: Callable[[], None] = lambda: None
    answers: Answers = "tell"
    fold: bool = False


def follow(client: Client, run_id: str, view: FollowView) -> int:
    """Print a run's events up to its end; return the exit code that its outcome means."""
    spinner = Spinner("waiting") if not view.as_json and sys.stderr.isatty() else None
    show = renderer(timestamps=view.timestamps, framed=view.framed, fold=view.fold)
    code = None
    try:
        with turning(spinner):
            for event in _events(client, run_id, view, show, spinner):
                if view.as_json:
                    print(as_json(event), flush=True)
                else:
                    _show(show, spinner, event)
                view.on_event()
                if event.type == "status" and event.data.get("status") == "waiting":
                    _answer(client, run_id, view, show, spinner)
                if event.type == "end":
                    code = exit_code(event)
    except KeyboardInterrupt:
        _detached(show, run_id)
        return EXIT_DETACHED
    return _outcome(client, run_id) if code is None else code


def _outcome(client: Client, run_id: str) -> int:
    """Ask how a run ended whose `end` was not among what was asked for (`-n 0`)."""
    run = client.get(run_id)
    return outcome_code(run["status"], run["exit_code"])


def _events(
    client: Client, run_id: str, view: FollowView, show: Renderer, spinner: Spinner | None
) -> Iterator[Event]:
    def lost(delay: float, error: TailrunError | None) -> None:
        if error is not None and not view.as_json:
            if spinner is not None:
                spinner.stop()
            show.note(f"! {error}; trying again in {delay:.1f} s", "warning")

    return client.stream(
        run_id,
        tail=view.tail,
        level=view.level,
        stream=view.stream,
        on_reconnect=lost,
    )


def _show(show: Renderer, spinner: Spinner | None, event: Event) -> None:
    if spinner is None:
        show.show(event)
        return
    if event.type == "log" and event.data.get("cr"):
        spinner.say(event.content or "")
        show.show(event)
        return
    spinner.stop()
    show.show(event)
    if event.stream in _WORDS and event.data.get("split"):
        return  # its line continues
    if event.type in _QUIET_TYPES or show.busy is not None:
        spinner.say(show.busy or str(event.data.get("status", "running")))


def _answer(client: Client, run_id: str, view: FollowView, show: Renderer, spinner: Spinner | None) -> None:
    """Have the person at the terminal say what the run waits for, or say how to."""
    from tailrun.commands.agents import Asker  # noqa: PLC0415 - most runs ask nothing

    if view.as_json and view.answers != "yes":
        return
    if spinner is not None:
        spinner.stop()
    note = _silent if view.as_json else show.note
    Asker(client, note, view.answers).settle(run_id)
    if spinner is not None:
        spinner.say("waiting")


def _silent(_text: str, _style: str) -> None:
    """Print nothing: what is printed is JSON."""


def _detached(show: Renderer, run_id: str) -> None:
    show.note("")
    show.note("Detached; the run continues.", "bold")
    show.note(f"  follow it:  tailrun logs -f {run_id[:8]}")
    show.note(f"  cancel it:  tailrun cancel {run_id[:8]}")


class Spinner:
    """A line with elapsed time at the foot of the terminal; gone before anything else is printed."""

    def __init__(self, text: str) -> None:
        from rich.console import Console  # noqa: PLC0415 - only on a terminal
        from rich.status import Status  # noqa: PLC0415

        self._text = text
        self._since = time.monotonic()
        self._status = Status(_Label(self), console=Console(stderr=True), spinner="dots")  # pyright: ignore[reportArgumentType]
        self._turning = False

    def say(self, text: str) -> None:
        """Show another text, and turn."""
        text = one_line(text)
        if text != self._text:
            self._text, self._since = text, time.monotonic()
        if not self._turning:
            self._status.start()
            self._turning = True

    def stop(self) -> None:
        """Clear the line."""
        if self._turning:
            self._status.stop()
            self._turning = False

    @property
    def label(self) -> str:
        """The text with the time since it changed."""
        return f"{self._text} · {duration(time.monotonic() - self._since)}"


class _Label:
    def __init__(self, spinner: Spinner) -> None:
        self._spinner = spinner

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text  # noqa: PLC0415

        yield Text(self._spinner.label, style="dim", overflow="ellipsis", no_wrap=True)


@contextmanager
def turning(spinner: Spinner | None) -> Generator[None]:
    """Turn the spinner from now on; it is gone at the end, whatever happens."""
    if spinner is not None:
        spinner.say("waiting")
    try:
        yield
    finally:
        if spinner is not None:
            spinner.stop()
