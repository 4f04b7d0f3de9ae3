"""A tool's environment is built from nothing."""

from __future__ import annotations

import os
import pwd
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from app.core.errors import Unprocessable
from app.execution.environment import Folders, ShortNames, build_env, search_path
from app.execution.executor import ToolRun
from app.k8s import spec
from app.storage.local_workspace import LocalWorkspaces
from app.storage.workspace import UNLIMITED
from toolbox.settings import for_the_program

TMP = Path("/scratch")


def built(path: str = "/usr/bin:/bin", **env: str) -> dict[str, str]:
    nowhere = LocalWorkspaces(TMP, UNLIMITED).open("u1", "r1")
    tool = ToolRun("r1", 3, "s2", ("true",), nowhere, env)
    return build_env(tool, Path("/work"), Folders("/h", "/t"), path)


def test_it_holds_what_a_tool_needs_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Zurich")
    monkeypatch.setenv("API_TOKEN", "secret")
    me = pwd.getpwuid(os.geteuid()).pw_name
    assert built() == {
        "PATH": "/usr/bin:/bin",
        "HOME": "/h",
        "TMPDIR": "/t",
        "USER": me,
        "LOGNAME": me,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "TERM": "dumb",
        "TZ": "Europe/Zurich",
        "TAILRUN_RUN_ID": "r1",
        "TAILRUN_ATTEMPT": "3",
        "TAILRUN_STEP": "s2",
        "TAILRUN_WORKSPACE": "/work",
    }


def test_an_account_without_a_name_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    assert {built()[name] for name in ("USER", "LOGNAME")} == {"4000000"}


def test_programs_are_found_where_the_worker_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/home/me/bin::/usr/bin")
    mine = str(Path(sys.executable).parent)
    assert search_path() == f"{mine}:/home/me/bin:/usr/bin"
    assert search_path("/opt/strict:/bin") == f"{mine}:/opt/strict:/bin"


def test_a_worker_without_a_path_still_finds_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATH")
    monkeypatch.delenv("TZ", raising=False)
    assert "/usr/bin" in search_path().split(os.pathsep)
    assert "TZ" not in built()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("/mine", "/mine:/usr/bin:/bin"),
        ("/mine:$PATH", "/mine:/usr/bin:/bin"),
        ("$PATH:/mine", "/mine:/usr/bin:/bin"),
        ("/mine:/bin:/usr/bin:/bin", "/mine:/bin:/usr/bin"),
        ("", "/usr/bin:/bin"),
        (":", "/usr/bin:/bin"),
    ],
)
def test_a_run_may_put_folders_before_them_and_loses_none(asked: str, expected: str) -> None:
    assert built(PATH=asked)["PATH"] == expected


def test_in_a_pod_the_wrapper_puts_them_before_those_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = LocalWorkspaces(TMP, UNLIMITED).open("u1", "r1")
    tool = ToolRun("r1", 1, "s1", ("true",), nowhere, {"PATH": "/mine:$PATH"})
    wrapped, raw = (spec.variables(tool, wrapped=wrapped) for wrapped in (True, False))
    assert "PATH" not in wrapped
    assert raw["PATH"].startswith("/mine:/usr/local/sbin:")
    for name, value in wrapped.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", "/image/bin:/bin")
    seen = for_the_program()
    assert seen["PATH"] == "/mine:/image/bin:/bin"
    assert (seen["USER"], seen["LOGNAME"]) == ("tool", "tool")
    assert not [name for name in seen if name.startswith("TOOLBOX_")]


def test_sockets_below_the_folders_fit_wherever_the_data_is(tmp_path: Path) -> None:
    """A path of a Unix socket takes 107 bytes; programs add up to 60 of their own."""
    home, tmp = (tmp_path / ("long" * 20) / name for name in ("home", "tmp"))
    for folder in (home, tmp):
        folder.mkdir(parents=True)
    names = ShortNames()
    with names.of(home, tmp) as folders:
        for name, folder in zip(folders, (home, tmp), strict=True):
            assert Path(name).samefile(folder)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(f"{name}/{'s' * 60}")
    assert not any(map(os.path.lexists, folders))
    names.close()


def test_a_short_folder_keeps_its_name() -> None:
    with ShortNames().of(Path("/short"), Path("/t")) as folders:
        assert folders == ("/short", "/t")


@pytest.mark.parametrize("kind", ["link", "open to others", "file"])
def test_short_names_are_not_made_where_others_could_swap_them(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    root = tmp_path / f"tr{os.geteuid()}"
    if kind == "link":
        root.symlink_to(tmp_path)
    elif kind == "file":
        root.touch()
    else:
        root.mkdir()
        root.chmod(0o777)
    long = tmp_path / ("x" * 100)
    with ShortNames().of(long, long) as folders:
        assert folders == (str(long), str(long))


def test_a_run_adds_its_own_and_may_change_the_language() -> None:
    env = built(COLOUR="red", LANG="de_CH.UTF-8")
    assert (env["COLOUR"], env["LANG"]) == ("red", "de_CH.UTF-8")


@pytest.mark.parametrize("name", ["HOME", "TMPDIR", "TAILRUN_RUN_ID", "TAILRUN_ANYTHING", "a b", "", "A=B"])
def test_a_reserved_or_impossible_name_is_refused(name: str) -> None:
    with pytest.raises(Unprocessable, match="env"):
        built(**{name: "x"})


def test_a_value_with_nul_is_refused() -> None:
    with pytest.raises(Unprocessable, match="NUL"):
        built(X="a\0b")
