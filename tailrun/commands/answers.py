"""The questions of a waiting run that is followed: put to the person at the terminal, or how to answer them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from tailrun.ansi import harmless

if TYPE_CHECKING:
    from tailrun import Client

_MOST_SHOWN = 2_000
Answers = Literal["ask", "yes", "tell"]
"""How an agent's questions are met while its run is followed: they are put to the person at the terminal,
approved, or it is said how to answer them."""


def described_step(asked: dict[str, Any]) -> str:
    """Say in one line what a step would do."""
    args = asked["args"] or {}
    what = next((args[name] for name in ("command", "source", "path") if name in args), None)
    text = what if isinstance(what, str) else json.dumps(args, ensure_ascii=False)
    return f"{asked['tool'] or 'step'}: {text}"[:_MOST_SHOWN]


class Asker:
    """Puts a waiting run's questions to the person at the terminal, while it is followed."""

    def __init__(self, client: Client, note: Callable[[str, str], None], answers: Answers) -> None:
        self._client, self._note = client, note
        asks = answers == "ask" and sys.stdin.isatty() and sys.stderr.isatty()
        self._answers: Answers = answers if asks or answers == "yes" else "tell"

    def settle(self, run_id: str) -> None:
        """Deal with what the run waits for, if it still does."""
        run = self._client.get(run_id)
        if run["status"] != "waiting":
            return
        if run.get("waiting_for") == "answer":
            self._ask_for_words(run_id)
            return
        for asked in self._client.approvals(run_id):
            if asked["decision"] is None:
                self._settle(asked)

    def _settle(self, asked: dict[str, Any]) -> None:
        run_id, step = asked["run_id"][:8], asked["step"]
        for line in described_step(asked).splitlines():
            self._note(f"  {line}", "bold")
        if self._answers == "tell":
            self._note(f"  approve it:  tailrun approve {run_id} {step}", "dim")
            self._note(f"  deny it:     tailrun deny {run_id} {step}", "dim")
            return
        yes = self._answers == "yes"
        if not yes:
            said = _line(f"Run {step}? [y/N] ")
            if said is None:
                return
            yes = said.strip().lower() in {"y", "yes"}
        self._decide(asked, approve=yes)

    def _decide(self, asked: dict[str, Any], *, approve: bool) -> None:
        from tailrun import Conflict  # noqa: PLC0415 - loads the client

        try:
            self._client.decide(
                asked["run_id"], asked["step"], approve=approve, args_sha256=asked["args_sha256"]
            )
        except Conflict as error:  # another one was faster, or it took too long
            self._note(f"! {error}", "warning")

    def _ask_for_words(self, run_id: str) -> None:
        if self._answers == "ask":
            said = _line("Your answer: ")
            if said and said.strip():
                self._client.say(run_id, said.strip())
                return
        self._note(f'  answer it:  tailrun say {run_id[:8]} "…"', "dim")


def _line(question: str) -> str | None:
    """Ask at the terminal; None at the end of its input."""
    print(harmless(question, colours=False), end="", file=sys.stderr, flush=True)
    said = sys.stdin.readline()
    return said or None
