"""What make does around Tailrun: the interpreter it picks, its messages, and Ctrl-C in a terminal."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import os, signal, sys, time
def say(text):  # a signal may come while `print` is at work
    os.write(1, f"{text}{chr(10)}".encode())
signal.signal(signal.SIGINT, lambda *_: (say("drained"), sys.exit(0)))
signal.signal(signal.SIGCONT, lambda *_: say("again"))
while os.isatty(0) and os.tcgetpgrp(0) != os.getpgrp():
    time.sleep(0.01)
say("ready")
while True:
    signal.pause()
"""


def checkout(folder: Path) -> Path:
    """Copy what setting up needs into an empty folder."""
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/setup.sh", folder / "scripts/setup.sh")
    return folder


def fake_python(folder: Path, *, version: str, venv: bool) -> Path:
    """Make a `python3` that claims a version, and to have or lack ensurepip."""
    folder.mkdir()
    program = folder / "python3"
    program.write_text(
        "#!/bin/sh\n"
        'case "$2" in\n'
        f"*exit*) exit {int(version == '3.9')} ;;\n"
        f"*ensurepip*) exit {0 if venv else 1} ;;\n"
        f"*) echo python{version}-venv ;;\n"
        "esac\n",
    )
    program.chmod(0o755)
    for tool in ("dirname", "date", "sh", "cat", "rm", "mkdir"):
        found = shutil.which(tool)
        assert found
        (folder / tool).symlink_to(found)
    return folder


@pytest.mark.parametrize(
    ("version", "venv", "package"),
    [("3.11", False, "python3.11-venv"), ("3.9", True, "python3-venv")],
)
def test_a_python_that_cannot_do_names_the_package(
    tmp_path: Path, version: str, venv: bool, package: str
) -> None:
    """Without a usable Python, set-up prints one line that says what to install."""
    path = fake_python(tmp_path / "bin", version=version, venv=venv)
    done = subprocess.run(
        ["/bin/sh", str(checkout(tmp_path / "repo") / "scripts/setup.sh"), "runtime"],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert package in done.stderr
    assert not done.stdout


def in_terminal(folder: Path, child: str) -> tuple[int, int]:
    """Start `make up`, as in the Makefile but with another program, in a terminal of its own."""
    (folder / "child.py").write_text(child)
    (folder / "Makefile").write_text(
        f"up:\n\t@{sys.executable} {ROOT / 'scripts/foreground.py'} {sys.executable} child.py\n",
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # `make test` is not the make of this test
            os.environ.pop(name, None)
        os.execvp("make", ["make", "up"])
    return pid, terminal


def read_until(terminal: int, word: bytes | None) -> bytes:
    """Read what the terminal shows until `word` came, or (None) until it closes."""
    seen = b""
    while word is None or word not in seen:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # what Linux answers once the last program has gone
            break
        if not piece:
            break
        seen += piece
    return seen


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_ctrl_c_ends_make_up_with_exit_code_0(tmp_path: Path) -> None:
    """Ctrl-C in a terminal drains the program; make ends with 0 and prints no error line."""
    pid, terminal = in_terminal(tmp_path, CHILD)
    read_until(terminal, b"ready")
    os.write(terminal, b"\x03")
    shown = read_until(terminal, None)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert b"drained" in shown
    assert b"make" not in shown
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_ctrl_z_stops_the_whole_job_and_it_goes_on(tmp_path: Path) -> None:
    """Ctrl-Z stops make with the program, as one job; SIGCONT resumes both; Ctrl-C still works."""
    pid, terminal = in_terminal(tmp_path, CHILD)
    read_until(terminal, b"ready")
    os.write(terminal, b"\x1a")
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.killpg(pid, signal.SIGCONT)
    read_until(terminal, b"again")
    os.write(terminal, b"\x03")
    assert b"drained" in read_until(terminal, None)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    os.close(terminal)


def test_a_signal_to_make_reaches_the_program(tmp_path: Path) -> None:
    """Without a terminal too, nothing is left running when make's process group is interrupted."""
    (tmp_path / "child.py").write_text(CHILD)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/foreground.py"), sys.executable, "child.py"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout
    with process:
        assert process.stdout.readline() == b"ready\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.read() == b"drained\n"
    assert process.returncode == 0


def test_the_launcher_ignores_a_folder_named_app(tmp_path: Path) -> None:
    """`tailrun` runs this repository's code wherever one stands, also through a link."""
    launcher = ROOT / ".venv/bin/tailrun"
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__init__.py").write_text("raise SystemExit('the wrong app')\n")
    (tmp_path / "app/__main__.py").write_text("raise SystemExit('the wrong app')\n")
    (tmp_path / "t").symlink_to(launcher)
    done = subprocess.run(
        ["./t", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
