"""How events look in a terminal and in a pipe, and what an end means as an exit code."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.models import RunKind
from tailrun import Event
from tailrun.ansi import harmless, one_line
from tailrun.commands.follow import Spinner
from tailrun.commands.render import Look, Renderer, as_json, duration, outcome_code, size
from tailrun.commands.tables import described, fields, table

CONTROLS = frozenset(map(chr, (*range(0x20), *range(0x7F, 0xA0))))
COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
PIPE = Look(framed=False, colours=False)
FRAMED = Look(framed=True, colours=False)
COLOURED = Look(framed=True, colours=True)


def event(kind: str = "log", content: str | None = None, **fields: object) -> Event:
    body = {"seq": 1, "type": kind, "ts": "2026-11-20T12:00:00.123456Z", "run_id": "r", "attempt": 1}
    if content is not None:
        body |= {"content": content, "level": "info", "stream": "stdout", "step": "s1"}
    return Event.of(body | fields)


def shown(look: Look, *events: Event) -> tuple[str, str]:
    out, notes = io.StringIO(), io.StringIO()
    renderer = Renderer(look, out, notes)
    for each in events:
        renderer.show(each)
    return out.getvalue(), notes.getvalue()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("succeeded", 0, 0),
        ("succeeded", None, 0),
        ("failed", 3, 3),
        ("failed", 0, 1),
        ("failed", None, 1),
        ("failed", 256, 1),
        ("cancelled", 143, 130),
        ("timed_out", 143, 124),
    ],
)
def test_the_exit_code_is_the_outcome(status: str, code: int | None, expected: int) -> None:
    assert outcome_code(status, code) == expected


def test_a_pipe_gets_bare_lines_and_the_notes_stand_apart() -> None:
    out, notes = shown(PIPE, event("status", status="running"), event(content="a\tb \x1b[31mred\x1b[0m"))
    assert out == "a\tb \x1b[31mred\x1b[0m\n"
    assert notes == "● running\n"


def test_a_frame_shows_level_and_stream() -> None:
    out, _ = shown(
        FRAMED,
        event(content="one"),
        event(content="two", stream="stderr"),
        event(content="three", level="error", stream="stderr"),
    )
    assert out == "   info │ one\n   info ┃ two\n  error ┃ three\n"


def test_colours_end_with_the_line() -> None:
    out, _ = shown(COLOURED, event(content="\x1b[32mgreen"))
    assert out.endswith("\x1b[32mgreen\x1b[0m\n")


def test_a_program_cannot_steer_the_terminal() -> None:
    hostile = "\x1b]0;title\x07\x1b[2J\x1b[1;1H\x1bcok\x08\x00\x9b31m\x1b[1mbold"
    assert harmless(hostile, colours=False) == "okbold"
    assert harmless(hostile, colours=True) == "ok\x1b[1mbold"


@given(st.text() | st.text("\x1b\x90\x9b\x9c\x9d\x07[]P0;m\\\t\n\r\x85a"))
def test_no_text_does_more_to_a_terminal_than_print(text: str) -> None:
    """Neither control characters nor sequences are left; of these, colours where they are wanted."""
    assert not CONTROLS.intersection(harmless(text, colours=False)) - {"\t", "\n"}
    assert not CONTROLS.intersection(one_line(text))
    coloured = harmless(text, colours=True)
    assert not CONTROLS.intersection(COLOUR.sub("", coloured)) - {"\t", "\n"}


@given(st.text())
def test_json_holds_no_control_character_and_loses_nothing(text: str) -> None:
    line = as_json(event(content=text))
    assert not CONTROLS.intersection(line)
    assert json.loads(line)["content"] == text


def test_a_terminal_gets_no_raw_line_in_any_look() -> None:
    bare = Look(framed=False, colours=False, terminal=True)
    assert shown(bare, event(content="\x1b[2Ja\x1b[31mb"))[0] == "a\x1b[31mb\n"


def test_the_spinner_prints_no_sequences() -> None:
    spinner = Spinner("waiting")
    spinner.say("50 %\x1b]0;title\x07\x1b[2J\x9b1m")
    try:
        assert spinner.label.startswith("50 % · ")
    finally:
        spinner.stop()


def test_a_row_is_one_line_with_all_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """What users choose, such as labels, breaks neither lines nor columns."""
    table(("A", "B"), [("one\ntwo\tthree\x1b[2J", "x\r\u2028y")])
    fields([("name", "one\n!! forged")])
    assert capsys.readouterr().out == "one two three\tx  y\nname  one !! forged\n"


def test_progress_updates_leave_only_the_last() -> None:
    updates = [event(content=f"{n} %", cr=True) for n in (10, 50, 90)]
    assert shown(PIPE, *updates, event(content="100 %"))[0] == "100 %\n"
    assert shown(PIPE, *updates, event("end", status="succeeded"))[0] == "90 %\n"


def test_progress_of_another_stream_is_kept() -> None:
    out, _ = shown(PIPE, event(content="half", cr=True), event(content="oops", stream="stderr"))
    assert out == "half\noops\n"


def test_a_step_heading_counts_the_steps() -> None:
    _, notes = shown(PIPE, event("step", content="▸ s2 shell: ls", status="running", n=2, of=3))
    assert notes == "▸ s2 shell: ls  (2/3)\n"


def test_a_retry_says_why_and_when() -> None:
    error = {"code": "worker_lost", "message": "the worker is gone"}
    again = event("status", status="queued", error=error, next_attempt_at="2026-11-20T12:00:05Z")
    _, notes = shown(PIPE, again)
    assert notes.startswith("● the worker is gone; tried again at ")


def test_a_hole_is_named() -> None:
    _, notes = shown(PIPE, event("gap", **{"from": 3, "to": 9}), event("truncated", **{"from": 1, "to": 2}))
    assert "events 3 to 9 were lost" in notes
    assert "events 1 to 2 were cut out" in notes


def test_an_end_tells_why() -> None:
    end = event("end", status="failed", exit_code=3, error={"code": "exit_nonzero", "message": "it broke"})
    assert shown(PIPE, end)[1] == "✘ failed: it broke (exit code 3)\n"


def test_events_of_a_newer_server_are_passed_over() -> None:
    assert shown(PIPE, event("hologram")) == ("", "")


def test_timestamps_are_of_this_timezone() -> None:
    out, _ = shown(Look(framed=True, colours=False, timestamps=True), event(content="x"))
    assert out.split(" ")[0].endswith(":00.123")


def test_quantities() -> None:
    assert [duration(s) for s in (0.84, 9.96, 42, 187, 3723)] == [
        "0.8 s",
        "10.0 s",
        "42 s",
        "3:07",
        "1:02:03",
    ]
    assert [size(n) for n in (512, 3400, 1_200_000, 5e12)] == ["512 B", "3.4 kB", "1.2 MB", "5000.0 GB"]


SPECS: dict[RunKind, tuple[dict[str, Any], str]] = {
    RunKind.ARGV: ({"argv": ["echo", "a b"]}, "echo 'a b'"),
    RunKind.PROMPT: ({"prompt": "\nDo this\nand that"}, "Do this"),
    RunKind.STEPS: ({"steps": [{}, {}]}, "2 steps"),
    RunKind.TASK: ({"type": "agent", "command": "run", "params": {"input": "x"}}, "agent/run input=x"),
}


@pytest.mark.parametrize("kind", RunKind)
def test_every_kind_of_run_can_be_described(kind: RunKind) -> None:
    """A new kind fails here until its words are in `SPECS`."""
    spec, words = SPECS[kind]
    assert described(spec) == words


ODD_SPECS = [{}, {"prompt": ""}, {"argv": 7}, {"later": ["kind"]}, {"type": "t", "params": None}]


@pytest.mark.parametrize("spec", ODD_SPECS)
def test_a_kind_of_a_newer_server_is_no_error(spec: dict[str, Any]) -> None:
    assert isinstance(described(spec), str)
