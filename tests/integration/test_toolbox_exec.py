"""The wrapper of tools as a real process: what a pod's log says, and how everything ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from support.stack import wait_for
from support.wrapped_program import EXEC, decode, finish, joined, python, start, wrapped

MEGABYTES_10 = 10_000_000


def test_lines_streams_and_the_end(tmp_path: Path) -> None:
    """Both streams, the exit code, and figures that are those of the program."""
    code = "import sys, os; print('out'); print('err', file=sys.stderr); sys.exit(7)"
    before = time.time_ns() // 1000
    done = wrapped(python(code), tmp_path)
    assert (done.code, done.out, done.err, done.news) == (7, "out\n", "err\n", [])
    end = done.end
    assert (end["code"], end["signal"], end["lines"], end["bytes"]) == (7, None, 2, 8)
    assert before <= end["started"] <= done.frames[0]["t"] <= time.time_ns() // 1000
    assert 0 < end["cpu_s"] < 60
    assert 1_000_000 < end["max_rss"] < 1_000_000_000
    assert "timeout" not in end


def test_the_programs_place(tmp_path: Path) -> None:
    """Its folder, its stdin, its environment and its signals are a program's, not a wrapper's."""
    code = (
        "import os, signal, sys\n"
        "print(os.getcwd()); print(repr(sys.stdin.read()))\n"
        "print([name for name in os.environ if name.startswith('TOOLBOX_')], os.environ['MINE'])\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), os.getpgrp() == os.getpid())\n"
        "print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])\n"
    )
    # from here: this Python ignores SIGPIPE, and its children would
    done = wrapped(["env", "MINE=1", *python(code)], tmp_path, TOOLBOX_GRACE_S="3")
    assert done.out.splitlines() == [str(tmp_path), "''", "[] 1", "set() True", "[0, 1, 2]"]
    status = wrapped(["cat", "/proc/self/status"], tmp_path).out
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn"))
    assert int(ignored.split()[1], 16) & 0x7FFF_FFFF == 0  # 32 and up are not Python's doing


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["no-such-program"], 127, "No such file"),
        (["./missing"], 127, "No such file"),
        (["./plain"], 126, "Permission denied"),
        (["./garbage"], 126, "Exec format error"),
        (["/"], 126, "Permission denied"),
        ([""], 126, ""),
    ],
)
def test_what_cannot_be_started(tmp_path: Path, argv: list[str], code: int, says: str) -> None:
    """The exit code is a shell's, and a frame says why."""
    (tmp_path / "plain").write_text("x")
    (tmp_path / "garbage").write_bytes(b"\0\1\2")
    (tmp_path / "garbage").chmod(0o755)
    done = wrapped(argv, tmp_path)
    assert done.code == done.end["code"] == code
    assert done.end["started"] == 0
    ((kind, message),) = done.news
    assert kind == "failed"
    assert says in message


def test_no_such_working_directory(tmp_path: Path) -> None:
    """The program is not even tried."""
    done = wrapped(["true"], tmp_path / "missing")
    assert (done.code, done.news[0][0]) == (125, "failed")


def test_ten_megabytes_on_each_pipe(tmp_path: Path) -> None:
    """Both are drained together: neither waits for the other, and nothing is lost."""
    code = (
        "import os, threading\n"
        "def pour(fd, line):\n"
        "    data = memoryview(line * (10_000_000 // len(line)))\n"
        "    while data: data = data[os.write(fd, data):]\n"
        "threads = [threading.Thread(target=pour, args=(1, b'out %s\\n' % (b'o' * 95))),\n"
        "           threading.Thread(target=pour, args=(2, b'err %s\\n' % (b'e' * 45)))]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )
    done = wrapped(python(code), tmp_path)
    assert done.out == ("out " + "o" * 95 + "\n") * 100_000
    assert done.err == ("err " + "e" * 45 + "\n") * 200_000
    assert done.end["bytes"] == 2 * MEGABYTES_10


def test_a_line_of_five_megabytes(tmp_path: Path) -> None:
    """It comes in parts, and is whole again."""
    done = wrapped(python("print('a' * 5_000_000 + 'é'); print('next')"), tmp_path)
    assert done.out == "a" * 5_000_000 + "é\nnext\n"
    assert done.end["lines"] == 2


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """Broken UTF-8, NUL, carriage returns, line separators, and no line end at the end."""
    raw = b"\xff\xfe|\xc3\xa9|\xc3\n\0\x1b[31m\r50%\r100%\r\n\xe2\x80\xa8\xf0\x9f\x98\n\xe2\x82"
    done = wrapped(
        python("import sys; sys.stdout.buffer.write(bytes.fromhex(sys.argv[1]))", raw.hex()), tmp_path
    )
    assert done.out == raw.decode(errors="replace")
    assert done.frames[-2]["u"] == 1


def test_progress_and_prompts_come_without_a_line_end(tmp_path: Path) -> None:
    """What has no end yet is shown after 200 ms; joined, it is the line."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    code = (
        "import sys; sys.stdout.write('10%\\r20%\\r'); sys.stdout.flush(); open('gate').read(); print('30%')"
    )
    process = start(python(code), tmp_path)
    assert process.stdout
    first = process.stdout.readline()
    assert b'"d":"10%\\r20%\\r","p":1}' in first
    gate.write_text("go")
    done = finish(process)
    assert joined([*decode(first), *done.frames], "o") == "10%\r20%\r30%\n"


def test_sigterm_obeyed(tmp_path: Path) -> None:
    """The program gets it, and may say something; its own exit code counts."""
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'bye\\n'), sys.exit(3)))\n"
        "os.write(1, b'ready\\n'); time.sleep(600)"  # print can't be interrupted by one that prints
    )
    process = start(python(code), tmp_path)
    assert process.stdout
    assert b"ready" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert (done.code, done.out) == (3, "bye\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_ignored(tmp_path: Path, number: signal.Signals) -> None:
    """After the grace it is killed, and with it what it started."""
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "time.sleep(600)"
    )
    process = start(python(code), tmp_path, TOOLBOX_GRACE_S="0.3")
    assert process.stdout
    child = int(decode(process.stdout.readline())[0]["d"])
    process.send_signal(number)
    done = finish(process)
    assert (done.code, done.end["signal"]) == (128 + signal.SIGKILL, 9)
    wait_for(lambda: not alive(child), "the grandchild's end", 60)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_stopped_program_is_woken_to_end(tmp_path: Path) -> None:
    """One that was stopped can obey a SIGTERM all the same."""
    process = start(
        python("import os, signal; print('x', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"), tmp_path
    )
    assert process.stdout
    process.stdout.readline()
    child = psutil.Process(process.pid).children()[0]
    wait_for(lambda: child.status() == psutil.STATUS_STOPPED, "the program to stop", 60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    process.stdout.close()


def test_the_time_limit(tmp_path: Path) -> None:
    """The wrapper's own limit ends a program that nobody else stops, and says that it did."""
    done = wrapped(["sleep", "600"], tmp_path, TOOLBOX_TIMEOUT_S="0.2")
    assert (done.code, done.end["signal"], done.end["timeout"]) == (143, 15, True)


def test_grandchildren_go_with_the_program(tmp_path: Path) -> None:
    """The end does not wait for what was left in the background of the group, and leaves nothing."""
    done = wrapped(["sh", "-c", "sleep 600 & echo $!; exit 4"], tmp_path)
    assert done.code == 4
    wait_for(lambda: not alive(int(done.out)), "the background process' end", 60)
    [(kind, named)] = done.news
    assert (kind, bool(named)) == ("stopped", True)


def test_one_that_left_the_group_does_not_hold_the_end(tmp_path: Path) -> None:
    """Where we are not PID 1 it survives; the pipe that it holds is left to it."""
    done = wrapped(["sh", "-c", "setsid sleep 600 & echo $!; echo said"], tmp_path)
    pid, said = done.out.split()
    assert (done.code, said) == (0, "said")
    if alive(int(pid)):
        os.kill(int(pid), signal.SIGKILL)


def test_a_closed_stdout_lets_the_program_finish(tmp_path: Path) -> None:
    """Nobody reads any more: what comes is thrown away, the work is done, the exit code counts."""
    code = "import sys\nfor n in range(200_000): print('x' * 50)\nopen('done', 'w').close(); sys.exit(5)"
    process = start(python(code), tmp_path)
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(100) == 5
    assert (tmp_path / "done").exists()


def test_a_reader_that_waits_makes_the_program_wait(tmp_path: Path) -> None:
    """Nothing piles up in the wrapper; nothing is lost; a signal is obeyed while stdout is full."""
    code = "import sys\nfor n in range(10**9): print(n)"
    process = start(python(code), tmp_path, TOOLBOX_GRACE_S="60")
    wrapper = psutil.Process(process.pid)
    wait_for(lambda: len(wrapper.children()) == 1, "the program", 60)
    program = wrapper.children()[0]
    wait_for(lambda: _idle(program) and _idle(wrapper), "both to wait for the reader", 60)
    assert wrapper.memory_info().rss < 40_000_000
    process.send_signal(signal.SIGTERM)
    wait_for(
        lambda: not program.is_running() or program.status() == psutil.STATUS_ZOMBIE, "the program's end", 60
    )
    done = finish(process)
    assert (done.code, done.end["signal"]) == (143, 15)
    numbers = done.out.splitlines()
    assert numbers[:-1] == [str(n) for n in range(len(numbers) - 1)]
    assert done.end["bytes"] == len(done.out)


def _idle(process: psutil.Process) -> bool:
    before = sum(process.cpu_times()[:2])
    time.sleep(0.3)
    return sum(process.cpu_times()[:2]) == before


def test_memory_is_bounded_under_much_output(tmp_path: Path) -> None:
    """More than a million empty lines, the most expensive output there is, past a reader that dawdles."""
    code = "import os\nline = b'\\n' * 65536\nfor _ in range(20): os.write(1, line)"
    process = start(python(code), tmp_path)
    peak, frames = 0, 0
    assert process.stdout
    while chunk := process.stdout.read1(1 << 20):
        frames += chunk.count(b"\n")
        with_memory = Path(f"/proc/{process.pid}/status").read_text()
        peak = max(
            peak, *(int(line.split()[1]) for line in with_memory.splitlines() if line.startswith("VmHWM")), 0
        )
    process.stdout.close()
    assert process.wait(60) == 0
    assert frames == 20 * 65536 + 1
    assert peak < 60_000


def _peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in status if line.startswith("VmHWM")), 0)  # none: a zombie


def _wait_until_it_hears(pid: int) -> None:
    """Wait until a SIGTERM no longer ends a wrapper that is just starting, but is heard."""

    def hears() -> bool:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = next(line.split()[1] for line in status if line.startswith("SigCgt"))
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)

    wait_for(hears, "the wrapper to hear signals", 60)


def test_it_waits_for_the_workspace(tmp_path: Path) -> None:
    """Nothing starts before the files are there; then a frame says so."""
    ready = tmp_path / "ready"
    process = start(["cat", "file"], tmp_path, TOOLBOX_WAIT=str(ready))
    _wait_until_it_hears(process.pid)
    (tmp_path / "file").write_text("content\n")
    assert process.poll() is None
    ready.touch()
    done = finish(process)
    assert (done.code, done.out, done.news) == (0, "content\n", [("synced", "")])
    assert done.frames[0]["k"] == "synced"


def test_a_workspace_that_failed(tmp_path: Path) -> None:
    """The reason is passed on, and the program never runs."""
    (tmp_path / "failed").write_text("status 403 (AccessDenied)")
    done = wrapped(["touch", "ran"], tmp_path, TOOLBOX_WAIT=str(tmp_path / "ready"))
    assert (done.code, done.news) == (125, [("failed", "status 403 (AccessDenied)")])
    assert not (tmp_path / "ran").exists()


def test_stopped_while_it_waits(tmp_path: Path) -> None:
    """A pod that is deleted before its files came ends at once."""
    process = start(["true"], tmp_path, TOOLBOX_WAIT=str(tmp_path / "ready"))
    _wait_until_it_hears(process.pid)
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert (done.code, done.end["signal"], done.end["started"]) == (143, 15, 0)


def test_stopped_just_as_it_starts(tmp_path: Path) -> None:
    """A signal that comes with the workspace is for the program, if there is one by then."""
    for n in range(10):
        ready = tmp_path / str(n) / "ready"
        ready.parent.mkdir()
        process = start(["sleep", "600"], tmp_path, TOOLBOX_WAIT=str(ready))
        _wait_until_it_hears(process.pid)
        ready.touch()
        time.sleep(n / 1000)
        process.send_signal(signal.SIGTERM)
        assert finish(process).code == 143


def test_a_limit_of_a_year(tmp_path: Path) -> None:
    """No number of seconds is too large."""
    assert wrapped(["true"], tmp_path, TOOLBOX_TIMEOUT_S="31536000", TOOLBOX_GRACE_S="1e12").code == 0


@pytest.mark.parametrize("closed", ["0", "1", "0,1,2"])
def test_descriptors_that_were_closed(tmp_path: Path, closed: str) -> None:
    """Started without a stdin or stdout, it mixes nothing up."""
    argv = [*EXEC, "sh", "-c", "cat; echo x >&2; exit 6"]
    code = f"import os\nfor fd in ({closed},): os.close(fd)\nos.execvp({argv[0]!r}, {argv!r})"
    process = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "TOOLBOX_CWD": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stderr) == (6, b"")


def test_wrong_use() -> None:
    """A settings value that is no number, and words that mean nothing, are said."""
    for argv, env, said in (
        (EXEC[:-1], {}, "usage"),
        ((*EXEC, "true"), {"TOOLBOX_GRACE_S": "soon"}, "TOOLBOX_GRACE_S"),
    ):
        done = subprocess.run(
            argv,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert said in done.stderr


PID_1 = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def _may_be_pid_1() -> bool:
    return subprocess.run([*PID_1, "true"], capture_output=True, check=False).returncode == 0


pid_1 = pytest.mark.skipif(
    not _may_be_pid_1(), reason="unshare --pid is not permitted here: PID 1 is not tested"
)


@pid_1
def test_as_pid_1_nothing_survives(tmp_path: Path) -> None:
    """Orphans are buried, and at the end everybody goes, also who left the group and holds a pipe."""
    code = (
        "import os, subprocess, time\n"
        "for _ in range(20): subprocess.Popen(['sh', '-c', '(exit 3) & exit 0']).wait()\n"
        "subprocess.Popen(['setsid', 'sleep', '600'])\n"
        "def dead(pid):\n"
        "    try: return open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0] == 'Z'\n"
        "    except OSError: return False\n"
        "while any(dead(pid) for pid in os.listdir('/proc') if pid.isdigit()): time.sleep(0.01)\n"
        "print('no zombies', os.getpid() != 1, os.getppid(), flush=True); os._exit(9)\n"
    )
    done = finish(start(python(code), tmp_path, *PID_1))
    assert (done.code, done.out) == (9, "no zombies True 1\n")


@pid_1
@pytest.mark.parametrize("obeyed", [True, False])
def test_as_pid_1_it_hears_sigterm(tmp_path: Path, obeyed: bool) -> None:
    """The kernel gives PID 1 no default action: without our handler a SIGTERM would be lost."""
    ignore = "" if obeyed else "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"import signal, time\n{ignore}\nprint('up', flush=True); time.sleep(600)"
    process = start(python(code), tmp_path, *PID_1, TOOLBOX_GRACE_S="0.3")
    assert process.stdout
    process.stdout.readline()
    wrapper = psutil.Process(process.pid).children()[0]
    wrapper.send_signal(signal.SIGTERM)
    number = signal.SIGTERM if obeyed else signal.SIGKILL
    done = finish(process)
    assert (done.code, done.end["signal"]) == (128 + number, number)


def test_many_at_once_and_many_short_ones(tmp_path: Path) -> None:
    """Signals of children that die, and reads that end, come in every order."""
    failures: list[object] = []

    def run() -> None:
        for n in range(8):
            done = wrapped(["sh", "-c", f"echo a; echo b >&2; exit {n}"], tmp_path)
            if (done.code, done.out, done.err) != (n, "a\n", "b\n"):
                failures.append(done)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
