"""What a model is told of an output: its beginning and its end, whole lines, bounded, and only text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.recording_log import Recorder

from app.agent.output import HeadAndTail, ToolOutput
from app.agent.tools.program import ToolOutcome
from app.storage.workspace import FileInfo
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Line, Stream


def kept(lines: list[str], most: int) -> str:
    found = HeadAndTail(most)
    for line in lines:
        found.add(line, goes_on=False)
    return found.text()


def test_what_fits_is_whole() -> None:
    assert kept(["one", "two"], 100) == "one\ntwo"


def test_of_what_does_not_fit_the_middle_goes() -> None:
    text = kept([f"line {n}" for n in range(1000)], 200)
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 998\nline 999")
    assert "bytes of 8890 left out" in text


@given(st.lists(st.text(max_size=300), max_size=50), st.integers(10, 2_000))
def test_it_is_bounded(lines: list[str], most: int) -> None:
    assert len(kept(lines, most).encode()) <= most + 60


async def test_it_is_text_without_sequences_and_what_was_replaced() -> None:
    output = ToolOutput(Recorder(), 1_000)
    lines = [
        Line(Stream.STDOUT, "50 %", cr=True),
        Line(Stream.STDERR, "\x1b[31mred\x1b[0m\x07"),
        Line(Stream.STDOUT, "in ", split=True),
        Line(Stream.STDOUT, "pieces"),
    ]
    await output.lines(lines, "c1-1")
    assert output.told(ToolOutcome(exit_code=0), None) == "exit code 0\nred\nin pieces"
    output.begin()
    assert output.told(ToolOutcome(), None) == "done"


async def test_files_and_failures_are_named() -> None:
    output = ToolOutput(Recorder(), 1_000)
    files = [FileInfo("a.txt", 3, 0), FileInfo("gone", -1, 0)]
    failure = RunFailure(ErrorCode.EXIT_NONZERO, "shell ended with exit code 3")
    told = output.told(ToolOutcome(exit_code=3, files=files), failure)
    assert (
        told == "Failed: shell ended with exit code 3.\nfiles written: a.txt (3 bytes)\nfiles removed: gone"
    )
