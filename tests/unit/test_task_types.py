"""What a task may ask for, in which words it is refused, and the argv that it becomes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import Unprocessable
from app.plan.cli_builder import build, environment, folder
from app.plan.projects import ProjectConfig, folder_name
from app.plan.task_types import BadTasksFile, TaskTypes, load

SHIPPED = load(None)
PLAIN = ProjectConfig()


def declared(tmp_path: Path, text: str) -> TaskTypes:
    path = tmp_path / "tasks.yaml"
    path.write_text(text)
    return load(path)


def argv(name: str, command: str | None = None, /, **params: Any) -> list[str]:
    return build(SHIPPED.check(name, command, params), PLAIN)


def refusal(types: TaskTypes, name: str, command: str | None = None, /, **params: Any) -> tuple[str, str]:
    with pytest.raises(Unprocessable) as refused:
        types.check(name, command, params)
    return refused.value.code, refused.value.message


def test_seed_db() -> None:
    assert argv("seed-db", reset=True) == ["python", "agent.py", "seed-db", "--reset"]
    assert argv("seed-db", reset=False) == argv("seed-db") == ["python", "agent.py", "seed-db"]


def test_import_excel() -> None:
    params = {"file_path": "/data/uploads/report.xlsx", "main_tab": "MB Attributes", "custom_structure": True}
    assert argv("task-context", "import-excel", **params) == [
        *("python", "agent.py", "task-context", "import-excel", "/data/uploads/report.xlsx"),
        *("--main-tab", "MB Attributes", "--custom-structure"),
    ]


def test_agent_run() -> None:
    assert argv("agent", "run", input="Analyze all MB attributes for Q1", parallel_workers=3) == [
        *("python", "agent.py", "agent", "run", "--input", "Analyze all MB attributes for Q1"),
        *("--parallel-workers", "3"),
    ]


def test_the_order_of_what_was_sent_does_not_count() -> None:
    assert argv("agent", "run", parallel_workers=3, input="x") == argv(
        "agent", "run", input="x", parallel_workers=3
    )


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_value_is_never_an_option(value: str) -> None:
    """Whatever is sent is one word, joined to its flag where it could be taken for another one."""
    words = argv("agent", "run", input=value)
    assert words[4:] in ([f"--input={value}"], ["--input", value])
    assert words[4:] == ["--input", value] or value.startswith("-")


TRICKY = """
types:
  t:
    program: [/opt/tool, "${paths.config}"]
    args: []
    cwd: "${paths.home}"
    env: {MODE: "at ${paths.home}", DB_CONN: mine}
    params:
      second: {type: number, position: 2}
      first: {position: 1, required: true, choices: [a, b, -c]}
      n: {type: integer, flag: -n, default: 7}
      where: {type: file, default: "${paths.home}/in.txt"}
"""


def test_places_flags_defaults_and_paths_of_the_project(tmp_path: Path) -> None:
    types = declared(tmp_path, TRICKY)
    project = ProjectConfig("p", "db://x", {"config": "/c.toml", "home": "/h"}, {"MODE": "own"})
    task = types.check("t", None, {"second": 1.5, "first": "b"})
    assert build(task, project) == ["/opt/tool", "/c.toml", "b", "1.5", "-n", "7", "--where", "/h/in.txt"]
    assert folder(task, project) == "/h"
    assert environment(task, project) == {
        "MODE": "own",
        "DB_CONN": "db://x",
        "PROJECT_ID": "p",
        "PROJECT_PATH_CONFIG": "/c.toml",
        "PROJECT_PATH_HOME": "/h",
    }
    with pytest.raises(Unprocessable, match="no path 'home'"):
        build(task, PLAIN)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"first": "-c"}, "first must not begin with '-'"),
        ({"first": "a", "second": -1}, "second must not begin with '-'"),
        ({"first": "a", "n": -1}, "behind the short flag -n"),
        ({"first": "c"}, "must be one of a, b, -c"),
    ],
)
def test_what_could_be_taken_for_an_option_is_refused(
    tmp_path: Path, params: dict[str, Any], words: str
) -> None:
    code, message = refusal(declared(tmp_path, TRICKY), "t", **params)
    assert code == "invalid_params"
    assert words in message


def test_files_of_the_run_are_found_from_any_folder() -> None:
    """Absolute paths stay; relative ones are put below the run's files when these are elsewhere."""
    task = SHIPPED.check("task-context", "import-excel", {"file_path": "in/a.xlsx"})
    assert build(task, PLAIN)[4] == "in/a.xlsx"
    assert build(task, PLAIN, "/runs/1/")[4] == "/runs/1/in/a.xlsx"
    dashed = SHIPPED.check("task-context", "import-excel", {"file_path": "-a.xlsx"})
    assert build(dashed, PLAIN)[4] == "./-a.xlsx"


@pytest.mark.parametrize(
    ("name", "command", "params", "code", "words"),
    [
        (
            "seed-bd",
            None,
            {},
            "unknown_type",
            "Did you mean 'seed-db'? There are: seed-db, task-context, agent, operation.",
        ),
        ("agent", None, {}, "unknown_command", "command is required: task type 'agent' has run."),
        ("agent", "rum", {}, "unknown_command", "Did you mean 'run'?"),
        ("seed-db", "now", {}, "unknown_command", "has no commands"),
        (
            "agent",
            "run",
            {"inptu": "x"},
            "invalid_params",
            "parameter of agent run: 'inptu'. Did you mean 'input'?",
        ),
        ("agent", "run", {}, "invalid_params", "agent run: input is required"),
        ("agent", "run", {"input": None}, "invalid_params", "input is required"),
        ("agent", "run", {"input": 3}, "invalid_params", "input must be a string, not a number"),
        ("agent", "run", {"input": "a\0b"}, "invalid_params", "NUL"),
        ("agent", "run", {"input": "x" * 100_001}, "invalid_params", "100000 are the most"),
        (
            "agent",
            "run",
            {"input": "x", "parallel_workers": True},
            "invalid_params",
            "whole number, not a boolean",
        ),
        ("agent", "run", {"input": "x", "parallel_workers": 1.0}, "invalid_params", "whole number"),
        ("agent", "run", {"input": "x", "parallel_workers": 65}, "invalid_params", "at most 64, not 65"),
        ("seed-db", None, {"reset": "yes"}, "invalid_params", "reset must be true or false, not a string"),
        ("task-context", "import-excel", {"file_path": "../x"}, "invalid_params", "it holds '..'"),
    ],
)
def test_a_slip_is_named(
    name: str, command: str | None, params: dict[str, Any], code: str, words: str
) -> None:
    got, message = refusal(SHIPPED, name, command, **params)
    assert got == code
    assert words in message


BAD = """types:
  a b:
    program: [x]
  seed:
    program: []
    paramz: {}
    params:
      x: {type: strng}
      y: {type: integer, default: a}
      z: {position: 2}
  env:
    program: [p, "${foo}"]
    env: {HOME: x}
    timeout_s: -1
"""


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(BadTasksFile) as bad:
        declared(tmp_path, text)
    assert str(bad.value) == "\n".join(bad.value.problems)
    return [line.removeprefix(f"{tmp_path}/tasks.yaml:") for line in bad.value.problems]


def test_every_mistake_of_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    found = problems(tmp_path, BAD)
    assert [line.split(":")[0] for line in found] == ["2", "5", "6", "8", "9", "12", "13", "14"]
    assert "did you mean 'params'?" in found[2]
    assert "must be one of string, integer, number, boolean, file, not 'strng'" in found[3]
    assert "HOME is set by Tailrun itself" in found[6]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", "1", "is empty"),
        ("- a", "1", "must be an object"),
        ("types:\n  a: [", "2", "is not YAML"),
        ("types: {}\ntypes: {}\n", "2", "types is repeated here, after line 1"),
        (
            "types:\n  a:\n    program: [x]\n    params:\n      p: {type: boolean, position: 1}",
            "5",
            "a boolean is a flag",
        ),
        ("types:\n  a:\n    program: [x]\n    params:\n      p: {position: 2}", "4", "positions 1, 2, 3"),
        (
            "types:\n  a:\n    program: [x]\n    params:\n      p: {required: true, default: x}",
            "5",
            "give one of",
        ),
        (
            "types:\n  a:\n    program: [x]\n    params: {p: {}}\n    commands:\n      c: {params: {p: {}}}",
            "2",
            "declares p for all commands and again for c",
        ),
        (
            (
                "types:\n  a:\n    program: [x]\n    params:\n"
                "      p: {position: 1}\n      q: {position: 2, required: true}"
            ),
            "4",
            "what may be left out comes last",
        ),
    ],
)
def test_one_mistake(tmp_path: Path, text: str, line: str, words: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(f"{line}: ")
    assert words in found[0]


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadTasksFile, match="can't be read: No such file"):
        load(tmp_path / "none.yaml")


def test_anchors_and_merges_keep_their_lines(tmp_path: Path) -> None:
    """What is shared is written once; a folder is taken from where the file is."""
    text = "types:\n  a: &a\n    program: [x]\n    cwd: here\n  b:\n    <<: *a\n    help: b\n"
    types = declared(tmp_path, text)
    assert (types.types["b"].program, types.types["b"].help) == (["x"], "b")
    assert types.types["a"].cwd == str(tmp_path / "here")


def test_the_document_tells_the_truth(tmp_path: Path) -> None:
    """The declaration in docs/tasks.md is a right one, and makes the argv that stands below it."""
    text = (Path(__file__).parents[2] / "docs/tasks.md").read_text(encoding="utf-8")
    types = declared(tmp_path, text.split("```yaml\n")[1].split("```")[0])
    task = types.check("report", "make", {"sheet": "in.xlsx", "rows": 20, "verbose": True})
    words = next(line for line in text.splitlines() if line.startswith('    ["python", "report.py"'))
    assert build(task, PLAIN, "/…") == json.loads(words)


@pytest.mark.parametrize("project_id", ["..", "../x", "a/b", ".", "x" * 200, "ä", "a\0b"])
def test_a_projects_folder_is_one_folder_below_the_others(project_id: str) -> None:
    """Also where PROJECTS_URL calls its projects what it likes."""
    name = folder_name(project_id)
    assert re.fullmatch(r"[0-9a-f]{64}", name)
    assert folder_name("default") == "default"
