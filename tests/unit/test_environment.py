"""A tool's environment is built from nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from app.core.errors import Unprocessable
from app.execution.environment import build_env
from app.execution.executor import ToolRun
from app.storage.local_workspace import LocalWorkspaces
from app.storage.workspace import UNLIMITED

TMP = Path("/scratch")


def built(**env: str) -> dict[str, str]:
    nowhere = LocalWorkspaces(TMP, UNLIMITED).open("u1", "r1")
    return build_env(ToolRun("r1", 3, "s2", ("true",), nowhere, env), Path("/work"), TMP)


def test_it_holds_what_a_tool_needs_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/home/me/bin:/usr/bin:/bin")
    monkeypatch.setenv("TZ", "Europe/Zurich")
    monkeypatch.setenv("API_TOKEN", "secret")
    assert built() == {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
        "HOME": "/work",
        "TMPDIR": "/scratch",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "TERM": "dumb",
        "TZ": "Europe/Zurich",
        "TAILRUN_RUN_ID": "r1",
        "TAILRUN_ATTEMPT": "3",
        "TAILRUN_STEP": "s2",
        "TAILRUN_WORKSPACE": "/work",
    }


def test_a_worker_without_a_path_still_finds_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATH")
    monkeypatch.delenv("TZ", raising=False)
    env = built()
    assert "/usr/bin" in env["PATH"].split(os.pathsep)
    assert "TZ" not in env


def test_a_run_adds_its_own_and_may_change_the_language() -> None:
    env = built(COLOUR="red", LANG="de_CH.UTF-8")
    assert (env["COLOUR"], env["LANG"]) == ("red", "de_CH.UTF-8")


@pytest.mark.parametrize(
    "name", ["PATH", "HOME", "TMPDIR", "TAILRUN_RUN_ID", "TAILRUN_ANYTHING", "a b", "", "A=B"]
)
def test_a_reserved_or_impossible_name_is_refused(name: str) -> None:
    with pytest.raises(Unprocessable, match="env"):
        built(**{name: "x"})


def test_a_value_with_nul_is_refused() -> None:
    with pytest.raises(Unprocessable, match="NUL"):
        built(X="a\0b")
