"""What commands leave in DATA_DIR is this user's alone, whatever the umask."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.config import Settings
from app.storage.factory import open_workspaces

ROOT = Path(__file__).resolve().parents[2]


def migrate(data_dir: Path, umask: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", "migrate"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(data_dir)},
        umask=umask,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def loose(folder: Path) -> list[str]:
    """Return what others get at, by its mode."""
    return [
        f"{path} {stat.filemode(path.lstat().st_mode)}"
        for path in (folder, *folder.rglob("*"))
        if path.lstat().st_mode & 0o077 and not path.is_symlink()
    ]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o002])
def test_migrate_makes_everything_private(tmp_path: Path, umask: int) -> None:
    """Folders above it that were missing as well."""
    migrate(tmp_path / "a/b/data", umask)
    assert (tmp_path / "a/b/data/tailrun.db").exists()
    assert loose(tmp_path / "a") == []


def test_a_database_that_was_open_is_tightened_and_a_folder_is_told(tmp_path: Path) -> None:
    """The folder may be a home: closing it is its owner's work."""
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    data.chmod(0o755)
    (data / "tailrun.db").touch()
    (data / "tailrun.db").chmod(0o644)
    done = migrate(data, 0o022)
    assert f"chmod 700 {data}" in done.stderr
    assert (data / "tailrun.db").stat().st_mode & 0o077 == 0
    assert data.stat().st_mode & 0o777 == 0o755


async def test_workspaces_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        workspaces = open_workspaces(Settings(data_dir=tmp_path / "new/data"))
        await workspaces.open("ann", "run-1").write("folder/file", b"x")
        await workspaces.close()
    finally:
        os.umask(before)
    folders = [path for path in (tmp_path / "new").rglob("*") if path.is_dir()]
    assert len(folders) > 3
    assert [path for path in (tmp_path / "new", *folders) if path.stat().st_mode & 0o077] == []
