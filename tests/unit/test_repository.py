"""What holds for every committed file: no machine's paths or registries, locks in step, small files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = tuple(f"requirements{what}.txt" for what in ("", "-embedded", "-fast", "-dev", "-deep"))
# put together here, so that this file does not name them itself
REGISTRIES = ["py" + "pi.org", "python" + "hosted.org", "registry." + "npmjs", "crates" + ".io/api"]
MACHINE_PATH = re.compile(
    r"(?<![\w.:/-])/(?:ro" + r"ot|wo" + r"rk|fa" + r"rm|ho" + r"me/(?!me/|you/)\w+|Us" + r"ers/\w+)/"
)
CONFLICT = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)
UNFINISHED = re.compile("NotImplemented" + "Error|TO" + r"DO\b|FIX" + r"ME\b")
EVERYWHERE = {"__init__.py", "conftest.py"}
NAMES_OF_NOTHING = {"utils.py", "util.py", "helpers.py", "common.py", "manager.py", "misc.py"}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    names = listed.decode().split("\0")[:-1]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


FILES = tracked()
PYTHON = [path for path in FILES if path.suffix == ".py"]
OURS = [
    path
    for path in PYTHON
    if path.relative_to(ROOT).parts[0] in {"app", "tailrun", "toolbox", "bench", "scripts"}
]


def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, set[str]]:
    """Return the versions that a lock pins, by package."""
    found: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / name).read_text(), re.MULTILINE):
        found.setdefault(package, set()).add(version)
    return found


def test_the_list_of_files_is_not_empty() -> None:
    """The other tests here really look at something."""
    assert len(PYTHON) > 20


def test_no_file_names_a_package_registry() -> None:
    """Which registry is asked is the business of the machine that installs."""
    named = [(path.name, host) for path in FILES for host in REGISTRIES if host in text_of(path)]
    assert named == []


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    """Nothing in the repository only works where it was written."""
    found = [
        (str(path.relative_to(ROOT)), m.group())
        for path in FILES
        for m in MACHINE_PATH.finditer(text_of(path))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "found"),
    [("see /wo" + "rk/x", True), ("https://host/ho" + "me/x/y", False), ("'/ro" + "ot/.x'", True)],
)
def test_the_path_pattern_finds_paths(text: str, found: bool) -> None:
    """The check above can fail, and leaves URLs alone."""
    assert bool(MACHINE_PATH.search(text)) is found


def test_no_merge_is_left_half_done() -> None:
    """A marker of a conflict is text to everything but Python."""
    assert [str(path.relative_to(ROOT)) for path in FILES if CONFLICT.search(text_of(path))] == []


def test_nothing_is_left_unfinished() -> None:
    """No stub and no note to oneself is committed."""
    found = [str(path.relative_to(ROOT)) for path in PYTHON if UNFINISHED.search(text_of(path))]
    assert found == []


def test_files_are_one_idea_each() -> None:
    """A file of the program has 400 lines at the most; every one has a name that says something."""
    long = [str(p.relative_to(ROOT)) for p in OURS if len(text_of(p).splitlines()) > 400]
    vague = [str(p.relative_to(ROOT)) for p in PYTHON if p.name in NAMES_OF_NOTHING]
    assert (long, vague) == ([], [])


def test_modules_say_why_they_exist() -> None:
    """Every module of ours starts with a docstring (or is an empty package marker)."""
    texts = {str(path.relative_to(ROOT)): text_of(path).lstrip("r") for path in OURS}
    silent = [name for name, text in texts.items() if text.strip() and not text.startswith('"""')]
    assert silent == []


SAME_ON_BOTH_SIDES = {
    *("Conflict", "Forbidden", "NotFound", "TailrunError", "TooLarge", "TooManyRequests", "Unauthorized"),
    *("Event", "Run", "RunStatus", "Stream"),
}
"""Classes of the client, the library or the pod that are what the service has by the same name."""


def test_a_class_name_is_used_once() -> None:
    """Whoever reads it where it is used knows which one it is."""
    classes = Counter(
        node.name
        for path in PYTHON
        if path.relative_to(ROOT).parts[0] in {"app", "tailrun", "toolbox"}
        for node in ast.walk(ast.parse(text_of(path)))
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in classes.items() if count > 1} == SAME_ON_BOTH_SIDES


def test_names_of_test_files_are_unique() -> None:
    """pytest imports them without packages, so a second of the same name would shadow the first."""
    names = Counter(path.name for path in PYTHON if "tests" in path.relative_to(ROOT).parts)
    assert [name for name, count in names.items() if count > 1 and name not in EVERYWHERE] == []


def test_locks_are_in_step_with_pyproject() -> None:
    """Whoever changes a dependency also runs `make lock`."""
    done = subprocess.run(
        [sys.executable, "scripts/lock.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_a_version_and_hashes(name: str) -> None:
    """pip is told to refuse whatever is not exactly what was locked."""
    entries = (ROOT / name).read_text().replace("\\\n", " ").splitlines()[1:]
    assert entries
    assert [
        entry for entry in entries if not re.match(r"[\w.-]+==\S+.*--hash=sha256:[0-9a-f]{64}", entry)
    ] == []
    assert "://" not in "".join(entries)


@pytest.mark.parametrize("name", LOCKS[1:])
def test_locks_agree_on_versions(name: str) -> None:
    """What is tested is what runs."""
    runtime, other = pins("requirements.txt"), pins(name)
    assert {
        package for package in runtime.keys() & other.keys() if runtime[package] != other[package]
    } == set()


def test_no_lock_of_another_tool_is_committed() -> None:
    """uv.lock holds the address of the registry it was resolved from (decision 0004)."""
    assert [path.name for path in FILES if path.name in {"uv.lock", "poetry.lock", "Pipfile.lock"}] == []


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    """pyproject.toml and CHANGELOG.md agree."""
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert project()["version"] == newest.group(1)


def test_the_licence_is_apache_2() -> None:
    """The text is the standard one, unchanged."""
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert project()["license"] == "Apache-2.0"


def test_every_make_target_is_in_help() -> None:
    """`make help` lists each command with a line."""
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make (\S+) +\w", shown, re.MULTILINE)) == set(phony.group(1).split())


def test_the_makefile_works_with_gnu_make_3_81() -> None:
    """macOS ships that version: no `!=`, no .ONESHELL, no $(file …), no grouped targets."""
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"^\w+ *!=|\.ONESHELL|\$\(file |&:", makefile, re.MULTILINE) == []


def test_ci_runs_check_and_test() -> None:
    """.ci/run is executable and calls the two targets that everybody uses."""
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    assert "make check" in script.read_text()
    assert "make test" in script.read_text()


RETIRED = {
    "attendance": "monitor",
    "bury": "dead_letter",
    "give_back": "requeue",
    "given_back": "requeued",
    "leash": "parent_death",
    "stranger": "unknown_entry",
    "to_the_end": "run_to_completion",
    "undisturbed": "run_to_completion",
    "viewer": "reader",
}
"""Words that were used once, and what the field says (docs/glossary.md)."""


def test_no_retired_word_comes_back_in_a_name() -> None:
    """Names of modules, classes, functions and variables; documents and messages may use plain English."""
    found = set[tuple[str, str]]()
    for path in PYTHON:
        if path.relative_to(ROOT).parts[0] not in {"app", "tailrun", "toolbox"}:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {path.stem}
        for node in ast.walk(tree):
            names |= {getattr(node, field, None) or "" for field in ("name", "id", "attr", "arg")}
        found |= {
            (str(path.relative_to(ROOT)), name)
            for name in names
            if isinstance(name, str) and any(word in name.lower() for word in RETIRED)
        }
    assert found == set()


MIGRATIONS = "app/db/migrations"
"""Not changed any more once they were released, their words neither."""
FIGURES_OF_SPEECH = re.compile(
    r"\b(nobody|somebody|stands?|stood|goes on|for ever|lets? go of|what becomes of|says so|of its own accord"
    r"|dear|dearest)\b",
    re.IGNORECASE,
)


def test_the_program_is_in_plain_words() -> None:
    """No figure of speech where there is a term (docs/glossary.md), in docstrings, comments and messages."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in PYTHON
        if path.relative_to(ROOT).parts[0] in {"app", "tailrun", "toolbox"}
        and not str(path.relative_to(ROOT)).startswith(MIGRATIONS)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if FIGURES_OF_SPEECH.search(line)
    ]
    assert found == []
