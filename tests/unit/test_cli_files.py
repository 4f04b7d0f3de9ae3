"""`files get`: where a download goes, and what is there before and after it."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tailrun import Client, NotFound
from tailrun.commands.connection import CliError
from tailrun.commands.files import _target, save


class Remote:
    """A run that has one file."""

    def __init__(self, *, executable: bool | None = False, breaks: bool = False, known: bool = True) -> None:
        self._executable, self._breaks, self._known = executable, breaks, known

    def download(self, run_id: str, path: str) -> Iterator[bytes]:
        if not self._known:
            raise NotFound(404, "not_found", path)
        yield b"new"
        if self._breaks:
            raise OSError(5, "Input/output error")

    def file(self, run_id: str, path: str) -> dict[str, Any]:
        return {"path": path, "size": 3, "executable": self._executable}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fetch(target: str, **remote: Any) -> int:
    return save(cast("Client", Remote(**remote)), "r", "x", Path(target))


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "x"])
def test_a_name_may_be_as_long_as_names_may_be(here: Path, name: str) -> None:
    assert fetch(name) == 3
    assert [path.name for path in here.iterdir()] == [name]


def test_a_link_stays_and_its_file_is_replaced(here: Path) -> None:
    (here / "real").write_text("old")
    (here / "link").symlink_to("real")
    (here / "dangling").symlink_to("made")
    fetch("link")
    fetch("dangling")
    assert (here / "link").is_symlink()
    assert (here / "dangling").is_symlink()
    assert (here / "real").read_text() == (here / "made").read_text() == "new"


@pytest.mark.parametrize(
    ("output", "target"),
    [(None, "x.sh"), ("out", "out/x.sh"), ("out/", "out/x.sh"), ("other", "other"), ("out/y", "out/y")],
)
def test_a_folder_takes_it_under_its_own_name(here: Path, output: str | None, target: str) -> None:
    (here / "out").mkdir()
    assert _target(output, "bin/x.sh") == Path(target)


@pytest.mark.parametrize(("output", "path"), [("none/", "x"), ("none/y", "x"), (None, ".."), (None, "/")])
def test_a_place_that_is_not_there_is_a_usage_error(output: str | None, path: str) -> None:
    with pytest.raises(CliError) as caught:
        _target(output, path)
    assert caught.value.code == 2


def test_a_device_and_a_pipe_are_written_into(here: Path) -> None:
    assert fetch(os.devnull) == 3
    assert not Path(os.devnull).is_file()
    os.mkfifo(here / "fifo")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((here / "fifo").read_bytes()))
    reader.start()
    fetch("fifo")
    reader.join(30)
    assert read == [b"new"]
    assert stat.S_ISFIFO((here / "fifo").stat().st_mode)


@pytest.mark.parametrize(("executable", "bit"), [(True, 0o100), (False, 0), (None, 0)])
def test_the_executable_bit_arrives(here: Path, executable: bool | None, bit: int) -> None:
    fetch("x", executable=executable)
    assert (here / "x").stat().st_mode & 0o100 == bit


def test_a_file_that_is_replaced_keeps_its_mode(here: Path) -> None:
    (here / "x").write_text("old")
    (here / "x").chmod(0o640)
    fetch("x")
    assert stat.S_IMODE((here / "x").stat().st_mode) == 0o640


def test_nothing_is_left_of_a_download_that_breaks_off(here: Path) -> None:
    (here / "x").write_text("old")
    with pytest.raises(CliError, match="Input/output"):
        fetch("x", breaks=True)
    with pytest.raises(NotFound):
        fetch("y", known=False)
    assert {path.name: path.read_text() for path in here.iterdir()} == {"x": "old"}
