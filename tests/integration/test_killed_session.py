"""Tests that are interrupted or killed leave no server behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from support.reaper import is_alive, marked
from support.up_process import START_S, until

ROOT = Path(__file__).resolve().parents[2]
SESSION = """
import os, time
from pathlib import Path
from support.stack import Stack
from support.up_process import Up

def test_with_everything(redis_server, postgres_url, tmp_path):
    stack = Stack(tmp_path, postgres_url)
    up = Up(tmp_path / "up").start()
    stack.redis.freeze()
    ready = Path({ready!r})
    ready.with_suffix(".part").write_text(str(os.getpid()))
    ready.with_suffix(".part").rename(ready)
    time.sleep(6000)
"""
MARK = "TAILRUN_TEST_OF_THE_TESTS"


@pytest.mark.parametrize(
    ("options", "who", "number"),
    [
        ([], "tests", signal.SIGINT),
        ([], "tests", signal.SIGKILL),
        (["-n", "1"], "tests", signal.SIGKILL),
        (["-n", "1"], "controller", signal.SIGKILL),
    ],
)
def test_nothing_is_left(tmp_path: Path, options: list[str], who: str, number: int) -> None:
    """Servers, API and workers, and an `up` with all that it has started."""
    ready, said = tmp_path / "ready", tmp_path / "said"
    (tmp_path / "test_session.py").write_text(SESSION.format(ready=str(ready)))
    mark = uuid.uuid4().hex
    with said.open("wb") as out:
        session = subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider"),
                *("-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "--basetemp", tmp_path / "temp"),
                *(*options, tmp_path / "test_session.py"),
            ],
            env={**os.environ, MARK: mark, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            cwd=ROOT,
            stdout=out,
            stderr=out,
        )
    until(lambda: ready.exists() or session.poll() is not None, START_S)
    assert session.poll() is None, said.read_text()
    started = {each for one in marked(MARK, mark) for each in (one, *one.children(recursive=True))}
    commands = [" ".join(process.cmdline()) for process in started if is_alive(process)]
    for name in ("-server", "postgres -D", "support.forked", "app up", "app worker"):
        assert any(name in command for command in commands), (name, commands)
    os.kill(session.pid if who == "controller" else int(ready.read_text()), number)
    session.wait(60)
    until(lambda: not any(map(is_alive, started)), 60)
    assert list(marked(MARK, mark)) == []
