"""What a run prints and how it is named never steers the terminal of who looks at it."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.up_process import Up

from tailrun import Client

pytestmark = pytest.mark.timeout(600)

HOSTILE = "\x1b]0;TITLE\x1b\\\x1b[2J\x1b[3;4H\x9b31m\x9d0;TITLE\x9c\x1bP+q544e\x1b\\\x07\x08\x0e"
STEERING = ("\x1b]0;", "\x1b[2J", "\x1b[3;4H", "\x1bP", "\x9b", "\x9d", "\x07", "\x08", "\x0e")
PROGRAM = f"""
import sys, time
say = sys.stdout
print('plain', {HOSTILE!r}, 'end', flush=True)
for n in range(4):
    print('progress', {HOSTILE!r}, n, end=chr(13), flush=True)
    time.sleep(0.3)
print(chr(10) + 'last', flush=True)
print({HOSTILE!r}, 'err', file=sys.stderr, flush=True)
sys.exit(3)
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("terminal"), JOB_MAX_ATTEMPTS="1").start()
    yield up
    assert up.stop() == 0


@pytest.fixture(scope="module")
def run_id(up: Up) -> str:
    step = {"tool": "code", "args": {"language": "python", "source": PROGRAM}}
    with Client(f"http://127.0.0.1:{up.port}", up.token) as client:
        made = client.create(steps=[step], labels={"a": HOSTILE + "\none\ttwo"}, start=False)
    return str(made["run_id"])


def on_terminal(up: Up, *args: str) -> str:
    """Return what a command writes to its terminal."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(up.folder)
        os.execve(sys.executable, [sys.executable, "-m", "app", *args], up.env | ENVIRONMENT)
    out = b""
    try:
        while piece := os.read(fd, 65536):
            out += piece
    except OSError:  # the terminal is gone with its last process
        pass
    finally:
        os.close(fd)
        os.waitpid(pid, 0)
    return out.decode("utf-8", "replace")


ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    "TERM": "xterm-256color",
    "COLUMNS": "120",
}


def test_no_command_lets_a_run_steer_the_terminal(up: Up, run_id: str) -> None:
    """Live with its spinner and progress, afterwards, as JSON, in tables and in refusals."""
    with Client(f"http://127.0.0.1:{up.port}", up.token) as client:
        client.start(run_id)
    looks = (
        ("logs", "-f", run_id),
        ("logs", run_id),
        ("logs", "--json", run_id),
        ("show", run_id),
        ("show", "--json", run_id),
        ("ls",),
        ("retry", run_id),
        ("cancel", f"x{HOSTILE}"),
        ("run", "--", f"/no/{HOSTILE}"),
        ("run", "--planner", "smoke", HOSTILE),
        ("dead", "list"),
        ("schedule", "create", "0 0 1 1 *", "--", "echo", HOSTILE),
        ("schedule", "list"),
        ("token", "create", "bob", "--name", HOSTILE),
        ("token", "list"),
        ("redis", "--raw", "LRANGE", "jobs:pending", "0", "-1"),
    )
    for look in looks:
        out = on_terminal(up, *look)
        assert [sign for sign in STEERING if sign in out] == [], (look, out)
    assert "progress" in on_terminal(up, "retry", run_id), "and the words themselves are shown"


def test_into_a_pipe_goes_what_the_program_printed(up: Up, run_id: str) -> None:
    up.run("logs", "-f", run_id)
    assert f"plain {HOSTILE} end\n" in up.run("logs", run_id).stdout
    rows = [row for row in up.run("ls").stdout.split("\n") if run_id in row or "two" in row]
    assert [row.count("\t") for row in rows] == [7] * len(rows)
