"""How an agent's run looks in the terminal, what `tailrun run` asks of one, and how its questions are put."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tailrun import Conflict, Event
from tailrun.commands.agents import Answers, Asker, agent_of
from tailrun.commands.connection import CliError
from tailrun.commands.render import Look, Renderer

PIPE = Look(framed=False, colours=False)
FRAMED = Look(framed=True, colours=False)


def event(kind: str, content: str | None = None, **fields: Any) -> Event:
    body = {"seq": 1, "type": kind, "ts": "2026-11-20T12:00:00.123456Z", "run_id": "r", "attempt": 1}
    return Event.of(body | ({} if content is None else {"content": content}) | fields)


def said(text: str, *, split: bool = False, stream: str = "model", call: int = 1) -> Event:
    return event("log", text, stream=stream, level="info", call=call, **({"split": True} if split else {}))


def step(status: str, content: str, **fields: Any) -> Event:
    return event("step", content, step="c1-0", status=status, tool="shell", call=1, **fields)


def output(text: str) -> Event:
    return event("log", text, stream="stdout", level="info", step="c1-0")


def shown(look: Look, *events: Event, fold: bool = True) -> tuple[str, str]:
    out, notes = io.StringIO(), io.StringIO()
    renderer = Renderer(look, out, notes, fold=fold)
    for each in events:
        renderer.show(each)
    return out.getvalue(), notes.getvalue()


def test_words_come_as_they_are_written_and_end_their_line() -> None:
    """Pieces are one line; whatever comes in between ends it."""
    words = [said("I will ", split=True), said("look.", split=True), said(""), said("Then write.")]
    assert shown(PIPE, *words)[0] == "I will look.\nThen write.\n"
    assert shown(FRAMED, *words)[0] == "  model │ I will look.\n  model │ Then write.\n"
    cut = [said("half", split=True), event("status", status="queued"), said("again", call=2)]
    assert shown(PIPE, *cut)[0] == "half\nagain\n"


def test_thoughts_are_for_terminals_only() -> None:
    thought = said("hm", stream="reasoning")
    assert shown(PIPE, thought)[0] == ""
    assert "hm" in shown(FRAMED, thought)[0]


def test_words_steer_no_terminal() -> None:
    look = Look(framed=True, colours=True, terminal=True)
    assert "\x1b[2J" not in shown(look, said("a\x1b[2Jb", split=True))[0]


def test_a_call_is_one_line_at_its_end() -> None:
    """With how long it took and what it printed; of one that failed the last lines are shown."""
    begun = step("running", "▸ c1-0 shell: make")
    lines = [output(f"line {n}") for n in range(9)]
    done = step("succeeded", "✓ c1-0 shell: done in 0.8 s", level="info", duration_s=0.8)
    out, notes = shown(FRAMED, begun, *lines, done)
    assert (out, notes) == ("", "✓ c1-0 shell: make · 0.8 s · 9 lines\n")
    failed = step("failed", "✗ c1-0 shell: exit code 2 (after 0.8 s)", level="error", duration_s=0.8)
    out, notes = shown(FRAMED, begun, *lines, failed)
    assert [line.rpartition(" ")[2] for line in out.splitlines()] == ["4", "5", "6", "7", "8"]
    assert notes == "✗ c1-0 shell: make · exit code 2 (after 0.8 s) · 9 lines\n"


def test_nothing_is_folded_where_all_lines_are_asked_for() -> None:
    begun, done = step("running", "▸ c1-0 shell: make"), step("succeeded", "✓ c1-0 shell: done", level="info")
    out, notes = shown(FRAMED, begun, output("made"), done, fold=False)
    assert "made" in out
    assert notes.splitlines() == ["▸ c1-0 shell: make", "✓ c1-0 shell: done"]


def test_the_last_line_has_what_a_run_took() -> None:
    """Programs' use of the machine is no cost of a model."""
    end = event("end", status="succeeded", exit_code=None, error=None)
    tool = event("usage", step="c1-0", cpu_s=1, wall_s=1, max_rss_bytes=1)
    known = event("usage", spent_tokens=12_345, spent_usd=0.0123)
    assert shown(FRAMED, known, tool, end)[1] == "✔ succeeded · 12345 tokens, $0.0123\n"
    assert shown(FRAMED, event("usage", spent_tokens=7, spent_usd=None), end)[1] == "✔ succeeded · 7 tokens\n"
    assert shown(FRAMED, tool, end)[1] == "✔ succeeded\n"


def test_what_an_agent_plans_asks_and_is_told_is_shown() -> None:
    events = [
        event("plan", items=["read", "write"], done=1),
        event("message", "hurry", by="ann", mode="next", k=1),
        event("approval", "c1-0 approved by ann", step="c1-0", status="approved"),
        event("status", status="waiting", waiting_for="answer"),
        event("model", status="sent", n=1),
        event("model", "call 1 was lost", status="lost", n=1),
        event("of a later release"),
    ]
    assert shown(FRAMED, *events)[1].splitlines() == [
        "  ☑ read",
        "  ☐ write",
        "» ann: hurry",
        "? c1-0 approved by ann",
        "● waiting for your answer",
        "! call 1 was lost",
    ]


# -- what is asked of an agent ----------------------------------------------------------------


def asked(**fields: Any) -> dict[str, Any]:
    names = ("model", "instructions", "budget", "tools", "approve", "schema")
    return agent_of(**({**dict.fromkeys(names), "yes": False} | fields))


def test_options_become_the_agents_part_of_the_request(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("Be short.")
    (tmp_path / "s.json").write_text(json.dumps({"type": "object"}))
    assert asked() == {}
    assert asked(
        model="quick",
        instructions=tmp_path / "a.md",
        budget=["$0.50", "tokens=1000", "calls=0"],
        tools="shell, file_read",
        approve="",
        schema=tmp_path / "s.json",
    ) == {
        "model": "quick",
        "instructions": "Be short.",
        "budget": {"usd": 0.5, "tokens": 1000, "calls": 0},
        "tools": ["shell", "file_read"],
        "approve": [],
        "result_schema": {"type": "object"},
    }
    assert asked(yes=True) == {"approve": []}


@pytest.mark.parametrize("limit", ["", "a lot", "-1", "nan", "inf", "euros=1", "tokens=1.5", "tokens="])
def test_a_budget_that_is_none_is_refused(limit: str) -> None:
    with pytest.raises(CliError, match="--budget"):
        asked(budget=[limit])


def test_a_schema_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in ("[]", "{"):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(CliError, match=r"s\.json"):
            asked(schema=tmp_path / "s.json")


def test_all_is_not_approved_and_asked_for_at_once() -> None:
    with pytest.raises(CliError, match="--yes"):
        asked(approve="shell", yes=True)


# -- its questions ----------------------------------------------------------------------------


class Server:
    """What `Asker` asks of a client, with one step that waits."""

    def __init__(self, waiting_for: str = "approval", refusal: Exception | None = None) -> None:
        self.run = {"status": "waiting", "waiting_for": waiting_for}
        self.refusal = refusal
        self.made: list[tuple[Any, ...]] = []

    def get(self, run_id: str) -> dict[str, Any]:
        return self.run

    def approvals(self, run_id: str) -> list[dict[str, Any]]:
        one = {"run_id": run_id, "tool": "shell", "args": {"command": "rm -r x"}, "args_sha256": "h"}
        return [one | {"step": "c1-0", "decision": None}, one | {"step": "c1-1", "decision": "denied"}]

    def decide(self, run_id: str, step: str, *, approve: bool, args_sha256: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.made.append((step, approve, args_sha256))

    def say(self, run_id: str, content: str) -> None:
        self.made.append((content,))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def settled(
    monkeypatch: pytest.MonkeyPatch, server: Server, answers: Answers, typed: str | None
) -> list[str]:
    notes: list[str] = []
    monkeypatch.setattr("sys.stdin", io.StringIO() if typed is None else Terminal(typed))
    monkeypatch.setattr("sys.stderr", Terminal())
    client: Any = server
    Asker(client, lambda text, _style: notes.append(text), answers).settle("0123456789")
    return notes


@pytest.mark.parametrize(
    ("typed", "made"),
    [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("what?\n", False), ("", None)],
)
def test_a_step_runs_if_the_person_says_so(
    monkeypatch: pytest.MonkeyPatch, typed: str, made: bool | None
) -> None:
    """Whoever says nothing, for the terminal is at its end, has decided nothing."""
    server = Server()
    notes = settled(monkeypatch, server, "ask", typed)
    assert server.made == ([] if made is None else [("c1-0", made, "h")])
    assert notes == ["  shell: rm -r x"]


def test_without_a_person_it_is_said_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    for answers, typed in (("ask", None), ("tell", "y\n")):
        server = Server()
        notes = settled(monkeypatch, server, answers, typed)  # pyright: ignore[reportArgumentType]
        assert server.made == []
        assert notes[1] == "  approve it:  tailrun approve 01234567 c1-0"
    assert settled(monkeypatch, Server("answer"), "tell", "y\n") == ['  answer it:  tailrun say 01234567 "…"']


def test_yes_approves_what_comes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    settled(monkeypatch, server, "yes", None)
    assert server.made == [("c1-0", True, "h")]


def test_an_answer_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("answer")
    settled(monkeypatch, server, "ask", " blue \n")
    assert server.made == [("blue",)]


def test_a_decision_that_somebody_else_made_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = Conflict(409, "decided", "c1-0 is decided: denied by bob")
    assert "denied by bob" in settled(monkeypatch, Server(refusal=refusal), "yes", None)[-1]


def test_a_wait_that_is_over_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of a run are shown from its first one on."""
    server = Server()
    server.run = {"status": "running", "waiting_for": None}
    assert settled(monkeypatch, server, "yes", None) == []
    assert server.made == []
