"""Supervision without Tailrun's own processes: restarts, order, deaths, logs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from support.up_process import until

from app.core.parent_death import bound_to_parent
from app.up.children import ChildSpec, LogTail, Supervisor

ROOT = Path(__file__).resolve().parents[2]


def python(script: str) -> list[str]:
    return [sys.executable, "-u", "-c", textwrap.dedent(script)]


def test_what_ends_is_started_again_later_and_later() -> None:
    said: list[str] = []
    with Supervisor(said.append) as supervisor:
        child = supervisor.start(ChildSpec("job", ["false"], os.environ))
        assert supervisor.wait_for(lambda: child.failures == 3, 60)
    assert said == [
        f"job ended with exit code 1; starting it again in {delay} s" for delay in ("0.25", "0.5", "1")
    ]


@pytest.mark.parametrize(
    ("death", "how"),
    [
        ("kill -ABRT $$", "was killed by SIGABRT"),  # no memory inside of a library of C
        ("kill -KILL $$", "was killed by SIGKILL"),  # the kernel's, or a container's, for lack of memory
        ("kill -SEGV $$", "was killed by SIGSEGV"),
        ("kill -40 $$", "was killed by signal 40"),
        ("exit 134", "ended with exit code 134"),
        ("exit 1", "ended with exit code 1"),
        ("exit 0", "ended with exit code 0"),
    ],
)
def test_however_a_child_dies_it_is_started_again(tmp_path: Path, death: str, how: str) -> None:
    """Each time, also when it does so at once."""
    said: list[str] = []
    starts = tmp_path / "starts"
    with Supervisor(said.append) as supervisor:
        child = supervisor.start(ChildSpec("job", ["sh", "-c", f"echo >> {starts}; {death}"], os.environ))
        assert supervisor.wait_for(lambda: len(starts.read_text()) >= 3 if starts.exists() else False, 60)
        assert supervisor.wait_for(lambda: child.failures == 3, 60)
    assert [line.partition(";")[0] for line in said] == [f"job {how}"] * 3


def test_a_child_that_dies_for_days_is_not_given_up(tmp_path: Path) -> None:
    """The pause stays the longest one."""
    said: list[str] = []
    with Supervisor(said.append) as supervisor:
        child = supervisor.start(ChildSpec("job", ["false"], os.environ))
        child.failures = 100_000
        assert supervisor.wait_for(lambda: child.failures == 100_001, 60)
        assert said == ["job ended with exit code 1; starting it again in 10 s"]
        child.due = 0
        assert supervisor.wait_for(lambda: child.failures == 100_002, 60)


def test_a_child_that_cannot_be_started_just_now_is_started_later(tmp_path: Path) -> None:
    """The machine has no process or no memory left, say; the other children go on meanwhile."""
    said: list[str] = []
    program, out = tmp_path / "program", tmp_path / "out"
    with Supervisor(said.append) as supervisor:
        supervisor.start(ChildSpec("job", [str(program)], os.environ, out))
        other = supervisor.start(ChildSpec("other", ["sleep", "60"], os.environ))
        assert supervisor.wait_for(lambda: len(said) == 2, 60)
        assert said[0].startswith("job could not be started (")
        program.write_text("#!/bin/sh\necho up; sleep 60\n")
        program.chmod(0o700)
        assert supervisor.wait_for(lambda: out.read_text() == "up\n", 60)
        assert other.failures == 0


def test_a_log_that_cannot_be_kept_is_cut_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not end the supervisor, nor stay full by the log."""
    monkeypatch.setattr("app.up.children.LOG_MAX_BYTES", 10)
    lines: list[str] = []
    log = tmp_path / "job.log"
    tail = LogTail(log, lines.append)
    log.write_text("a line of more than ten bytes\n")
    (tmp_path / "job.log.1").mkdir()
    tail.pump()
    assert log.read_text() == ""
    assert lines[0].startswith("a line")
    assert "are dropped" in lines[1]


def test_what_is_not_kept_just_ends() -> None:
    with Supervisor(lambda _: None) as supervisor:
        child = supervisor.start(ChildSpec("job", ["sh", "-c", "exit 7"], os.environ), keep=False)
        assert supervisor.wait_for(lambda: child.exit_code is not None, 60)
        assert (child.exit_code, child.process) == (7, None)


def test_a_higher_stage_is_stopped_first_and_a_stubborn_child_is_killed(tmp_path: Path) -> None:
    said: list[str] = []
    order = tmp_path / "order"
    script = f"""
        import signal, sys, time
        def end(*_):
            open({str(order)!r}, "a").write(sys.argv[1])
            sys.exit(0)
        signal.signal(signal.SIGTERM, end if sys.argv[1] != "x" else signal.SIG_IGN)
        print("up")
        time.sleep(60)
    """
    with Supervisor(said.append) as supervisor:
        for name, stage in (("a", 0), ("b", 1), ("c", 2), ("x", 3)):
            spec = ChildSpec(
                name, [*python(script), name], os.environ, tmp_path / name, stop_s=1, stage=stage
            )
            supervisor.start(spec)
        ready = lambda: all((tmp_path / name).read_text() == "up\n" for name in "abcx")  # noqa: E731
        assert supervisor.wait_for(ready, 60)
    assert order.read_text() == "cba"
    assert said == ["x did not end in time: killed"]


PARENT = """
    import os, signal, sys
    from app.up.children import ChildSpec, Supervisor
    if sys.argv[1] == "leash":
        sys.platform = "darwin"
    with Supervisor(print) as supervisor:
        argv = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
        death = signal.SIGTERM if sys.argv[2] == "TERM" else signal.SIGKILL
        supervisor.start(ChildSpec("child", argv, os.environ, death_signal=death))
        supervisor.run()
"""


@pytest.mark.parametrize("death", ["TERM", "KILL"])
@pytest.mark.parametrize("how", ["kernel", "leash"])
def test_children_die_with_a_parent_that_was_killed(how: str, death: str) -> None:
    with subprocess.Popen([*python(PARENT), how, death], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"up\n"
        below = psutil.Process(parent.pid).children(recursive=True)
        assert len(below) == (2 if how == "leash" else 1)
        parent.kill()
        until(lambda: not any(each.is_running() for each in below))


def test_a_leash_passes_signals_on_and_has_the_childs_exit_code() -> None:
    script = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(9)); print('up'); time.sleep(60)"
    )
    reading, writing = os.pipe()
    try:
        argv = bound_to_parent(python(script), signal.SIGKILL, reading)
        with subprocess.Popen(argv, pass_fds=(reading,), stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout
            assert process.stdout.readline() == b"up\n"
            process.terminate()
            assert process.wait(60) == 9
    finally:
        os.close(reading)
        os.close(writing)


def test_new_lines_of_a_log_are_handed_over(tmp_path: Path) -> None:
    path, lines = tmp_path / "log", list[str]()
    path.write_text("old\n")
    tail = LogTail(path, lines.append)
    with path.open("a") as log:
        log.write("one\ntw")
        log.flush()
        tail.pump()
        log.write("o\n")
        log.flush()
        tail.pump()
    assert lines == ["one", "two"]


def test_a_log_stays_bounded_while_its_writer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.up.children.LOG_MAX_BYTES", 100)
    path, lines = tmp_path / "log", list[str]()
    tail = LogTail(path, lines.append)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(60):
        os.write(fd, b"line %d\n" % number)
        tail.pump()
    os.close(fd)
    assert lines == [f"line {number}" for number in range(60)]
    assert path.stat().st_size < 120
    assert (tmp_path / "log.1").stat().st_size < 120
