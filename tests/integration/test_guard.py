"""Nothing of a tool outlives it, its worker, or the worker's silence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from executor_conformance import IGNORES_SIGTERM, Recorder, ended, shell, stopped_at, tool
from local_tools import beating, executor_at, programs_of, wait_for

from app.execution import guard_client
from app.execution.guard_client import GuardClient, Request
from app.execution.process import LocalExecutor
from tailrun.process import guard
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Stream
from tailrun.process.monitor import SWEPT
from tailrun.process.stop import StopReason, StopToken

DOUBLE_FORK = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("daemon", flush=True)
        time.sleep(60)
    os._exit(0)
os.wait()
"""
TREE = DOUBLE_FORK + "time.sleep(60)\n"
HOPPER = """
import os, sys, time
print("hopping", flush=True)
end = time.monotonic() + 20
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
    os.setsid()
"""
BACKGROUND = "import os, time\nif os.fork(): os._exit(0)\nprint('left', flush=True)\ntime.sleep(60)"

WORKER = """
import asyncio, sys, threading, time
from pathlib import Path
from app.execution.executor import StopToken, ToolRun
from app.execution.process import LocalExecutor
from app.storage.local_workspace import LocalWorkspaces
from app.storage.workspace import UNLIMITED

run_id, folder, script = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
executor = LocalExecutor(tmp_dir=folder / "tmp", silence_s=3, grace_s=30)

def beat():
    while True:
        executor.heartbeat()
        time.sleep(0.2)

async def sink(lines):
    for line in lines:
        print(line.content, flush=True)

threading.Thread(target=beat, daemon=True).start()
files = LocalWorkspaces(folder / "files", UNLIMITED).open("u", "r")
asyncio.run(executor.run(ToolRun(run_id, 1, "s", (sys.executable, "-c", script), files), sink, StopToken()))
"""


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[LocalExecutor]:
    async with beating(executor_at(tmp_path)) as executor:
        yield executor


@contextlib.contextmanager
def worker(run_id: str, folder: Path, script: str, ready: str) -> Iterator[subprocess.Popen[str]]:
    """A real worker process that runs one tool, which has printed `ready`."""
    argv = [sys.executable, "-c", WORKER, run_id, str(folder), script]
    root = Path(__file__).parents[2]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == ready
            yield process
        finally:
            process.kill()


def guards_of(run_id: str) -> list[psutil.Process]:
    """Find a run's guards, which end only after the last descendant of their tools."""
    found = list[psutil.Process]()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                any(arg.startswith(f"{run_id}/") for arg in process.cmdline()[-1:])
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


@pytest.mark.parametrize("script", [TREE, HOPPER], ids=["double fork", "ever new sessions"])
def test_a_killed_worker_takes_its_tools_tree_along(tmp_path: Path, script: str, slack: float) -> None:
    run_id = f"killed-{tmp_path.name}"
    with worker(run_id, tmp_path, script, "daemon" if script is TREE else "hopping") as process:
        assert guards_of(run_id)
        process.kill()
        wait_for(lambda: not guards_of(run_id), within_s=1 * slack)
        wait_for(lambda: not programs_of(run_id), within_s=1 * slack)
        wait_for(lambda: is_empty(tmp_path / "tmp"), within_s=1 * slack)


def test_a_frozen_worker_loses_its_tool_within_the_lease(tmp_path: Path, slack: float) -> None:
    run_id = f"frozen-{tmp_path.name}"
    with worker(run_id, tmp_path, TREE, "daemon") as process:
        time.sleep(4)  # longer than the lease: the heartbeats were what kept it
        assert programs_of(run_id)
        process.send_signal(signal.SIGSTOP)
        try:
            took_s = wait_for(lambda: not programs_of(run_id), within_s=4 * slack)
            assert took_s > 2
            wait_for(lambda: is_empty(tmp_path / "tmp"), within_s=1 * slack)
        finally:
            process.send_signal(signal.SIGCONT)


async def test_the_grace_is_counted_by_the_guard_whatever_becomes_of_the_worker(
    tmp_path: Path, slack: float
) -> None:
    argv = (sys.executable, "-c", IGNORES_SIGTERM)
    request = Request(argv, tmp_path, {}, tmp_path / "tmp", lease_s=30, grace_s=0.5)
    guarded, ended = GuardClient.start(request, "grace/s"), asyncio.Event()
    guarded.listen(lambda: ended.set() if guarded.gone else None)
    wait_for(lambda: _readable(guarded.outputs[Stream.STDOUT]), within_s=60)
    began = time.monotonic()
    guarded.say(guard.TERMINATE)  # the last word it hears
    async with asyncio.timeout(60):
        await ended.wait()
    assert 0.5 <= time.monotonic() - began < 2 * slack
    assert guarded.report["signal"] == signal.SIGKILL
    await guarded.close()


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@pytest.mark.parametrize("reason", [StopReason.CANCEL, StopReason.DRAIN])
async def test_a_stop_reaches_every_descendant(
    executor: LocalExecutor, tmp_path: Path, reason: StopReason, slack: float
) -> None:
    what = tool(tmp_path, "python3", "-c", TREE)
    result, took_s = await stopped_at(executor, what, "daemon", reason)
    assert result.stopped is reason
    assert took_s < 1.5 * slack
    assert programs_of(what.run_id) == []


@pytest.mark.parametrize(
    "script", [DOUBLE_FORK, BACKGROUND], ids=["daemon that ignores SIGTERM", "background"]
)
async def test_what_a_program_leaves_behind_is_ended_soon(
    executor: LocalExecutor,
    tmp_path: Path,
    script: str,
    slack: float,
) -> None:
    what, began = tool(tmp_path, "python3", "-c", script), time.monotonic()
    result, _ = await ended(executor, what)
    assert (result.exit_code, result.stopped) == (0, None)
    assert 0.5 <= time.monotonic() - began < 2.5 * slack
    assert programs_of(what.run_id) == []


async def test_a_background_program_that_floods_the_pipe_is_ended_too(
    executor: LocalExecutor,
    tmp_path: Path,
    slack: float,
) -> None:
    what, began = shell(tmp_path, "yes & sleep 0.1"), time.monotonic()
    result, _ = await ended(executor, what)
    assert result.exit_code == 0
    assert time.monotonic() - began < 10 * slack
    assert programs_of(what.run_id) == []


async def test_a_program_that_forks_for_ever_into_new_sessions_is_caught(
    executor: LocalExecutor,
    tmp_path: Path,
) -> None:
    what = tool(tmp_path, "python3", "-c", HOPPER)
    result, _ = await ended(executor, what)
    assert result.exit_code == 0
    assert programs_of(what.run_id) == []


async def test_the_temporary_folder_is_the_tools_own_and_goes_with_it(
    executor: LocalExecutor,
    tmp_path: Path,
) -> None:
    script = (
        "realpath $TMPDIR; cd $TMPDIR; mkdir -p a/b; echo x > a/b/c; ln -s / root; chmod 0 a/b; stat -c %a ."
    )
    _, sink = await ended(executor, shell(tmp_path, script))
    folder, mode = sink.of(Stream.STDOUT)
    assert mode == "700"
    assert Path(folder).parent == tmp_path / "tmp"
    assert is_empty(tmp_path / "tmp")


async def test_a_link_in_place_of_the_temporary_folder_is_not_followed(
    executor: LocalExecutor,
    tmp_path: Path,
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    await ended(executor, shell(tmp_path, f"rmdir $TMPDIR; ln -s {kept} $TMPDIR"))
    assert (kept / "file").exists()
    assert is_empty(tmp_path / "tmp")


async def test_a_tool_inherits_three_descriptors_and_no_ignored_signal(
    executor: LocalExecutor,
    tmp_path: Path,
) -> None:
    script = (
        "import os; print(sorted(os.listdir('/proc/self/fd'))[:-1], os.readlink('/proc/self/fd/0'));"
        "print(*[l.split()[1] for l in open('/proc/self/status') if l.startswith(('SigIgn', 'SigBlk'))])"
    )
    program = (
        "import subprocess;"
        f"subprocess.run(['python3', '-c', {script!r}], close_fds=False, restore_signals=False)"
    )
    _, sink = await ended(executor, shell(tmp_path, 'exec python3 -c "$CODE"', CODE=program))
    fds, signals = sink.of(Stream.STDOUT)
    assert fds == "['0', '1', '2'] /dev/null"
    python_ignores = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    python_ignores |= 1 << 31 | 1 << 32  # 32 and 33 are the C library's own; no program can set them
    blocked, ignored = (int(mask, 16) for mask in signals.split())
    assert (blocked, ignored & ~python_ignores) == (0, 0)


async def test_the_tool_leads_a_group_of_its_own(executor: LocalExecutor, tmp_path: Path) -> None:
    _, sink = await ended(
        executor, tool(tmp_path, "python3", "-c", "import os; print(os.getpid() == os.getpgrp())")
    )
    assert sink.of(Stream.STDOUT) == ["True"]


async def test_a_killed_guard_takes_the_program_along_and_is_named(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    what, sink = tool(tmp_path, "python3", "-c", TREE), Recorder()
    running = asyncio.create_task(executor.run(what, sink, StopToken()))
    await sink.until("daemon")
    for found in guards_of(what.run_id):
        found.kill()
    with pytest.raises(RunFailure) as caught:
        await running
    assert caught.value.code is ErrorCode.EXECUTOR_UNAVAILABLE
    assert programs_of(what.run_id) == []
    assert is_empty(tmp_path / "tmp")


async def test_a_polite_signal_to_the_guard_ends_the_program_politely(
    executor: LocalExecutor,
    tmp_path: Path,
) -> None:
    what, sink = (
        shell(tmp_path, "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"),
        Recorder(),
    )
    running = asyncio.create_task(executor.run(what, sink, StopToken()))
    await sink.until("ready")
    for found in guards_of(what.run_id):
        found.terminate()
    result = await running
    assert (result.exit_code, result.stopped, sink.of(Stream.STDOUT)) == (3, None, ["ready", "bye"])


def test_a_guard_without_a_worker_ends_at_once(tmp_path: Path, slack: float) -> None:
    read, write = os.pipe()
    argv = [sys.executable, "-I", "-S", guard.__file__, str(write), str(tmp_path / "t")]
    began = time.monotonic()
    subprocess.run(argv, input=b"", pass_fds=(write,), check=True, timeout=60)
    assert time.monotonic() - began < 2 * slack
    assert not (tmp_path / "t").exists()
    os.close(read)
    os.close(write)


def test_trees_of_any_depth_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "deep"
    root.mkdir()
    before = Path.cwd()
    os.chdir(root)
    for _ in range(1100):
        Path("d").mkdir()
        os.chdir("d")
    os.chdir(before)
    guard.remove_tree(os.fsencode(root))
    assert not root.exists()


async def test_what_is_left_in_the_background_is_named_when_it_is_stopped(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    script = 'sleep 6000 & python3 -c "import time; time.sleep(6000)" "quo\\"te" & echo started'
    _, sink = await ended(executor, shell(tmp_path, script))
    [line] = sink.of(Stream.SYSTEM)
    assert line.startswith(SWEPT)
    assert "sleep 6000" in line
    assert "import time; time.sleep(6000)" in line


async def test_what_ends_by_itself_or_on_request_is_not_named(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    _, sink = await ended(executor, shell(tmp_path, "sleep 0.01 & echo started"))
    assert sink.of(Stream.SYSTEM) == []
    what, sink, stop = shell(tmp_path, "sleep 6000 & echo up; sleep 6000"), Recorder(), StopToken()
    running = asyncio.create_task(executor.run(what, sink, stop))
    await sink.until("up")
    stop.stop(StopReason.CANCEL)
    await running
    assert sink.of(Stream.SYSTEM) == []


async def test_a_guard_that_its_program_stops_goes_on(executor: LocalExecutor, tmp_path: Path) -> None:
    """The next heartbeat wakes it: the run neither hangs nor leaves a process behind."""
    what = shell(tmp_path, "kill -STOP $PPID; echo x")
    running = asyncio.create_task(ended(executor, what))
    while not running.done():
        executor.heartbeat()
        await asyncio.wait([running], timeout=0.05)
    result, sink = await running
    assert (result.exit_code, sink.of(Stream.STDOUT)) == (0, ["x"])
    assert guards_of(what.run_id) == []


async def test_the_end_does_not_wait_for_a_guard_that_stays_frozen(
    executor: LocalExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A debugger holds it, say: then it is killed, and what it held with it."""
    monkeypatch.setattr(guard_client, "_CLOSE_S", 0.2)
    what, sink = tool(tmp_path, "python3", "-c", TREE), Recorder()
    running = asyncio.create_task(executor.run(what, sink, StopToken()))
    await sink.until("daemon")
    send = subprocess.Popen[bytes].send_signal
    monkeypatch.setattr(
        subprocess.Popen, "send_signal", lambda self, n: None if n == signal.SIGCONT else send(self, n)
    )
    for found in guards_of(what.run_id):
        found.suspend()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert guards_of(what.run_id) == programs_of(what.run_id) == []
