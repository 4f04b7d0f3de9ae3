"""Temporary folders: a process that was killed leaves nothing for ever, a living one loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from app.storage.scratch import Scratch, purge

CHILD = """
import sys, time
from pathlib import Path
from app.storage.scratch import Scratch
folder = Scratch(Path(sys.argv[1])).folder()
(folder / "half").write_bytes(b"half a file")
print(folder, flush=True)
time.sleep(60)
"""


def start(root: Path) -> tuple[subprocess.Popen[str], Path]:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(root)], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    return child, Path(child.stdout.readline().strip())


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    assert child.stdout
    child.stdout.close()


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    dead, dead_folder = start(tmp_path)
    living, living_folder = start(tmp_path)
    end(dead)
    scratch = Scratch(tmp_path)
    own = scratch.folder()
    assert not dead_folder.exists()
    assert (living_folder / "half").exists()
    scratch.close()
    assert not own.exists()
    end(living)


def test_a_folder_is_kept_for_the_life_of_its_process_and_made_again(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    own = scratch.folder()
    assert scratch.folder() == own
    assert Scratch(tmp_path).folder() != own
    assert own.exists()
    purge(own)
    again = scratch.folder()
    assert again.is_dir()
    scratch.close()


def test_purging_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_bytes(b"x")
    trash = tmp_path / "trash"
    (trash / "a/b").mkdir(parents=True)
    (trash / "a/link").symlink_to(tmp_path / "kept")
    (trash / "a/broken").symlink_to("nowhere")
    os.mkfifo(trash / "a/b/fifo")
    purge(trash)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept/file").exists()


def test_purging_takes_folders_without_permissions(unprivileged: Path) -> None:
    trash = unprivileged / "trash"
    (trash / "a/b/c").mkdir(parents=True)
    for folder in ("a/b/c", "a/b", "a", ""):
        (trash / folder).chmod(0)
    purge(trash)
    assert list(unprivileged.iterdir()) == []
