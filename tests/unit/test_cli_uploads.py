"""Files on their way to a run: what stays here is told, and no run is left held without its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from tailrun import Client, ServerError
from tailrun.commands.connection import CliError
from tailrun.commands.uploads import Upload, held_files, submit, uploads_of


class Recording:
    """A client that writes down what it is asked, and fails where it is told to."""

    def __init__(self, failing: str = "") -> None:
        self.asked: list[str] = []
        self._failing = failing

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if what == self._failing:
            raise ServerError(500, "internal", what)

    def create(self, **fields: Any) -> dict[str, Any]:
        self._note("create")
        return {"run_id": "r", "started": fields["start"]}

    def upload(self, run_id: str, path: str, source: Path) -> dict[str, Any]:
        self._note("upload")
        return {"path": path, "size": source.stat().st_size}

    def start(self, run_id: str) -> dict[str, Any]:
        self._note("start")
        return {"run_id": run_id}

    def cancel(self, run_id: str) -> dict[str, Any]:
        self._note("cancel")
        return {"run_id": run_id}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def test_what_is_not_brought_along_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = here / "d"
    (folder / "empty").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "a").write_text("1")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "other").symlink_to("/etc")
    (folder / "to-a").symlink_to("a")
    os.mkfifo(folder / "fifo")
    assert [each.path for each in uploads_of([], [Path("d")])] == ["d/a", "d/to-a"]
    told = capsys.readouterr().err
    for name in ("d/empty", "d/.git", "d/dangling", "d/other", "d/fifo"):
        assert f"not brought along: {name}: " in told
    assert "d/to-a" not in told


def test_words_that_are_folders_or_lie_outside_are_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "src").mkdir()
    (here / "src/a").write_text("1")
    (here.parent / "out.txt").write_text("1")
    assert uploads_of(["ls", "src", "../out.txt", ".", "/etc", "x\0", "é" * 5000], []) == []
    told = capsys.readouterr().err
    assert "src: a folder: --with src brings it" in told
    assert "--with ../out.txt brings it" in told
    assert len(told.splitlines()) == 2
    assert uploads_of(["ls", "src"], [Path("src")]) == [Upload(Path("src/a"), "src/a")]
    assert capsys.readouterr().err == ""


def test_many_that_stay_are_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(50):
        (here / "d" / f"e{n}").mkdir(parents=True)
    uploads_of([], [Path("d")])
    told = capsys.readouterr().err.splitlines()
    assert (len(told), told[-1]) == (21, "not brought along: 30 more")


def test_a_device_is_no_upload() -> None:
    with pytest.raises(CliError, match="no regular file"):
        uploads_of([], [Path("/dev/null")])


def test_a_folder_that_cannot_be_read_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "d").mkdir()
    real = os.scandir

    def refusing(path: Any) -> Any:
        if str(path) == "d":
            raise PermissionError(13, "Permission denied", "d")
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError):
        uploads_of([], [Path("d")])


@pytest.mark.parametrize("path", [Path("vanished"), Path(os.fsdecode(b"x\xff"))])
def test_a_file_that_cannot_be_sent_makes_no_run(here: Path, path: Path) -> None:
    if path.name != "vanished":
        path.write_text("1")
    client = Recording()
    with pytest.raises((OSError, UnicodeError)):
        submit(cast("Client", client), {"argv": ["x"]}, [Upload(path, path.name)], quiet=True)
    assert client.asked == []


@pytest.mark.parametrize(
    ("failing", "asked"),
    [
        ("upload", ["create", "upload", "cancel"]),
        ("start", ["create", "upload", "start", "cancel"]),
        ("create", ["create"]),
    ],
)
def test_a_run_whose_files_do_not_arrive_is_cancelled(here: Path, failing: str, asked: list[str]) -> None:
    (here / "a").write_text("1")
    client = Recording(failing)
    with pytest.raises(ServerError, match=failing):
        submit(cast("Client", client), {"argv": ["x"]}, [Upload(Path("a"), "a")], quiet=True)
    assert client.asked == asked


def test_what_broke_it_off_is_told_even_if_the_cancel_fails(here: Path) -> None:
    class Away(Recording):
        def upload(self, run_id: str, path: str, source: Path) -> dict[str, Any]:
            raise KeyboardInterrupt

    (here / "a").write_text("1")
    with pytest.raises(KeyboardInterrupt):
        submit(cast("Client", Away("cancel")), {"argv": ["x"]}, [Upload(Path("a"), "a")], quiet=True)


def test_files_of_a_schedule_are_kept_by_a_run_that_never_starts(here: Path) -> None:
    (here / "a").write_text("1")
    client = Recording()
    assert held_files(cast("Client", client), {"argv": ["x"]}, [Upload(Path("a"), "a")], quiet=True) == "r"
    assert client.asked == ["create", "upload", "cancel"]
