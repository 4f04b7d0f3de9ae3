"""What `tailrun run` makes of its words, and which local files it brings along."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tailrun.commands.connection import CliError
from tailrun.commands.run import pairs, read_plan, what
from tailrun.commands.uploads import uploads_of


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def brought(argv: list[str], named: list[str] | None = None) -> dict[str, str]:
    return {each.path: str(each.source) for each in uploads_of(argv, [Path(name) for name in named or []])}


def test_a_prompt_a_plan_or_a_command() -> None:
    Path("plan.yaml").write_text("steps:\n- {tool: shell, args: {command: ls}}\nlabels: {a: b}\n")
    step = {"tool": "shell", "args": {"command": "ls"}}
    assert what(["do it"], None, None) == {"prompt": "do it"}
    assert what([], ["ls", "-l"], None) == {"argv": ["ls", "-l"]}
    assert what([], None, "plan.yaml") == {"steps": [step], "labels": {"a": "b"}}


def test_a_bare_list_is_a_plan() -> None:
    Path("plan.json").write_text('[{"tool": "file_list", "args": {}}]')
    assert read_plan("plan.json") == {"steps": [{"tool": "file_list", "args": {}}]}


@pytest.mark.parametrize(
    ("prompt", "argv", "steps", "said"),
    [
        ([], None, None, "Give one of"),
        (["x"], ["ls"], None, "Give one of"),
        ([], [], None, "After -- comes a command"),
        (["two", "words"], None, None, "Put a prompt in quotes"),
        ([], None, "missing.yaml", "No such file"),
    ],
)
def test_anything_else_is_a_usage_error(
    prompt: list[str], argv: list[str] | None, steps: str | None, said: str
) -> None:
    with pytest.raises(CliError, match=said) as caught:
        what(prompt, argv, steps)
    assert caught.value.code == 2


@pytest.mark.parametrize("text", ["just words", "{a: [}", "7", "- 2026-11-20"])
def test_a_file_that_is_no_plan_is_refused(text: str) -> None:
    Path("plan.yaml").write_text(text)
    with pytest.raises(CliError, match=r"plan\.yaml"):
        read_plan("plan.yaml")


def test_files_named_in_the_command_are_brought() -> None:
    Path("job.py").touch()
    Path("data").mkdir()
    Path("data/in.csv").touch()
    assert brought(["python", "./job.py", "data/in.csv", "--fast", ""]) == {
        "job.py": "job.py",
        "data/in.csv": "data/in.csv",
    }


def test_files_elsewhere_are_not_brought_unasked(here: Path) -> None:
    (here.parent / "outside.txt").touch()
    assert brought(["cat", "../outside.txt", "/etc/hostname", str(here.parent / "outside.txt")]) == {}


def test_with_brings_files_and_folders_from_anywhere(here: Path) -> None:
    outside = here.parent / "outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "sub" / "a.txt").touch()
    (outside / ".git").mkdir()
    (outside / ".git" / "config").touch()
    Path("docs").mkdir()
    Path("docs/b.md").touch()
    assert sorted(brought([], ["../outside", "docs"])) == ["docs/b.md", "outside/sub/a.txt"]
    assert sorted(brought([], [str(outside / "sub" / "a.txt")])) == ["a.txt"]


def test_with_a_path_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(CliError, match="no such file") as caught:
        brought([], ["nowhere"])
    assert caught.value.code == 2


def test_links_to_nowhere_and_pipes_are_passed_over() -> None:
    Path("dead").symlink_to("nowhere")
    os.mkfifo("pipe")
    assert brought(["cat", "dead", "pipe"], ["."]) == {}


def test_pairs() -> None:
    assert pairs(["a=1", "b=x=y", "c="], "--env") == {"a": "1", "b": "x=y", "c": ""}
    with pytest.raises(CliError, match="NAME=VALUE"):
        pairs(["novalue"], "--env")


def test_json_is_read_as_json() -> None:
    """Tabs, and numbers that YAML 1.1 takes for text; with the mark that editors on Windows write."""
    Path("p.json").write_bytes(
        b'\xef\xbb\xbf{\n\t"steps": [\n\t\t{"tool": "file_list", "args": {"n": 1e3}}]\n}\r\n'
    )
    assert read_plan("p.json") == {"steps": [{"tool": "file_list", "args": {"n": 1000.0}}]}


@pytest.mark.parametrize("raw", [b'{"steps": [,]}', b'{"steps": [NaN]}', b"[" * 5000, b'{"steps": ["\xff"]}'])
def test_json_that_is_none_is_told_as_such(raw: bytes) -> None:
    Path("p.json").write_bytes(raw)
    with pytest.raises(CliError, match=r"p\.json") as caught:
        read_plan("p.json")
    assert caught.value.code == 2


NAMES = ["plan.yaml", "missing.yml", "./run.sh", "src/", "job.py", "here and there.txt", "there"]


@pytest.mark.parametrize("word", NAMES)
def test_a_files_name_is_no_prompt(word: str) -> None:
    """Nobody guesses what it was meant as: both ways are named."""
    Path("plan.yaml").write_text("steps: []")
    Path("here and there.txt").write_text("1")
    Path("there").mkdir()
    with pytest.raises(CliError, match="--steps") as caught:
        what([word], None, None)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "prompt", ["hello", "Hello.", "Count 3.5 million", "read README.md", "a/b or c?", "v1.2"]
)
def test_a_sentence_is_a_prompt(prompt: str) -> None:
    assert what([prompt], None, None) == {"prompt": prompt}
