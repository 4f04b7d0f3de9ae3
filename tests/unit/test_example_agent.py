"""The example agent by itself: what it prints, writes and ends with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "agent-cli"


def agent(folder: Path, *words: str, **env: str) -> tuple[int, list[str], str]:
    """Run it in its own folder; its files go to `folder`."""
    environment = {"PATH": os.environ["PATH"], "TAILRUN_WORKSPACE": str(folder), **env}
    done = subprocess.run(
        [sys.executable, "agent.py", *words],
        cwd=EXAMPLE,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.fixture
def sheet(tmp_path: Path) -> str:
    path = str(tmp_path / "report.xlsx")
    subprocess.run([sys.executable, EXAMPLE / "make_xlsx.py", path], check=True, capture_output=True)
    return path


def test_seeding_is_done_once_unless_it_is_reset(tmp_path: Path) -> None:
    assert agent(tmp_path, "seed-db") == (0, ["seeded 48 rows of 4 attributes"], "")
    assert agent(tmp_path, "seed-db")[1] == ["48 rows are there already; --reset begins anew"]
    assert agent(tmp_path, "seed-db", "--reset")[1] == [
        "reset: 48 rows removed",
        "seeded 48 rows of 4 attributes",
    ]


def test_a_sheet_is_imported_and_analysed(tmp_path: Path, sheet: str) -> None:
    code, lines, _ = agent(tmp_path, "task-context", "import-excel", sheet, "--custom-structure")
    assert (code, lines[-1]) == (0, "imported 12 values of sheet 'MB Attributes'")
    lines = agent(tmp_path, "task-context", "import-excel", sheet, "--main-tab", "Values")[1]
    assert lines[-1] == "imported 1 values of sheet 'Values'"
    words = ("agent", "run", "--input", "All of Q1, please", "--parallel-workers", "3")
    code, lines, _ = agent(tmp_path, *words)
    assert (code, lines[-1]) == (0, "report: 4 attributes in report.json and report.csv")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["attributes"]["MB margin"] == {"count": 1, "mean": 110.0, "min": 110.0, "max": 110.0}
    assert (tmp_path / "report.csv").read_text().startswith("attribute,count,mean,min,max")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--main-tab", "Nothing"), "there is no sheet 'Nothing'; the file has MB Attributes, Values"),
        ((), "column 'quarter' is missing; other columns are read with --custom-structure"),
    ],
)
def test_what_it_cannot_read_it_names(tmp_path: Path, sheet: str, words: tuple[str, ...], says: str) -> None:
    code, _, said = agent(tmp_path, "task-context", "import-excel", sheet, *words)
    assert (code, said) == (2, f"agent.py: {says}\n")


def test_a_file_that_is_no_workbook(tmp_path: Path) -> None:
    (tmp_path / "x.xlsx").write_text("no")
    code, _, said = agent(tmp_path, "task-context", "import-excel", str(tmp_path / "x.xlsx"))
    assert code == 2
    assert "can't be read as .xlsx" in said


def test_its_image_has_what_the_lock_has() -> None:
    """The example's requirements are those of the project, by version and hash."""
    locked = (ROOT / "requirements.txt").read_text()
    own = (EXAMPLE / "requirements.txt").read_text().split("\n", 1)[1]
    entries = re.findall(r"^\S+==.*?(?=^\S|\Z)", own, re.MULTILINE | re.DOTALL)
    assert [entry.split("==")[0] for entry in entries] == ["et-xmlfile", "openpyxl"]
    assert all(entry.strip() in locked for entry in entries)
