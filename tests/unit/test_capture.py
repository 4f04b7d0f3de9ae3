"""The library's parts in memory: lines, files, followers, registry, tokens, bounds. No POSIX-only call."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tailrun
from tailrun import (
    CancellationToken,
    LogEntry,
    OutputCapture,
    ResourceLimitException,
    ResourceManager,
    RunRegistry,
    RunStatus,
    StopSignal,
    TaskNotStarted,
    execute_long_running_task,
)
from tailrun.process.lines import Line, Stream

New = Callable[..., OutputCapture]


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Callable[..., OutputCapture]]:
    """Make captures that are closed at the end."""
    made = list[OutputCapture]()

    def make(**options: Any) -> OutputCapture:
        made.append(OutputCapture(tmp_path / "logs", **options))
        return made[-1]

    yield make
    for capture in made:
        capture.close()


@pytest.fixture
def capture(new: Callable[..., OutputCapture]) -> OutputCapture:
    return new()


async def frames_of(capture: OutputCapture, run_id: str, after: int = 0) -> list[str]:
    async with asyncio.timeout(60):
        return [frame async for frame in capture.sse_frames(run_id, after)]


def messages(entries: list[LogEntry]) -> list[str]:
    return [entry.message for entry in entries]


async def test_a_script_of_one_line_ends_with_0_and_leaves_one_line(
    capture: OutputCapture, tmp_path: Path
) -> None:
    script = tmp_path / "one.py"
    script.write_text("print('hello')")
    assert await execute_long_running_task("r1", script, capture) == 0
    assert messages(capture.get_logs("r1")) == ["hello"]


async def test_arguments_and_folder_are_the_scripts(capture: OutputCapture, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "say.py").write_text("import os, sys\nprint(sys.argv[1:], os.getcwd())\nsys.exit(3)")
    code = await execute_long_running_task(
        "r1", tmp_path / "say.py", capture, ["a b", "c"], tmp_path / "work"
    )
    assert (code, messages(capture.get_logs("r1"))) == (3, [f"['a b', 'c'] {tmp_path / 'work'}"])


@pytest.mark.parametrize("script", ["missing.py", "./missing", "no-such-program-anywhere"])
async def test_a_missing_program_is_said_and_noted(capture: OutputCapture, script: str) -> None:
    registry = RunRegistry()
    run = registry.create_run("m", {"x": 1}, run_id="r1")
    with pytest.raises(TaskNotStarted, match=r"missing|no-such-program"):
        await execute_long_running_task(run.run_id, script, capture, registry=registry)
    assert registry.get_run("r1").status is RunStatus.FAILED
    (entry,) = capture.get_logs("r1")
    assert (entry.stream, entry.level) == ("system", "error")


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("ERROR: x", "error"),
        ("[WARN] x", "warning"),
        ("level=info x", "info"),
        ('{"level": "error", "msg": "x"}', "error"),
        ("2026-11-20 12:00:00,123 DEBUG x", "debug"),
        ("no error here", "info"),
    ],
)
def test_a_line_says_its_level_itself(capture: OutputCapture, line: str, level: str) -> None:
    capture.append_line("r1", line)
    assert capture.get_logs("r1")[0].level == level


def test_the_end_of_a_line_goes_and_its_blanks_stay(capture: OutputCapture) -> None:
    capture.append_line("r1", "    deep \t\r\n", "stderr")
    (entry,) = capture.get_logs("r1")
    assert entry.to_dict() == {
        "timestamp": entry.timestamp.isoformat().replace("+00:00", "Z"),
        "message": "    deep \t",
        "level": "info",
        "stream": "stderr",
    }


def test_the_ring_keeps_the_newest_and_the_file_keeps_all(new: New) -> None:
    capture = new(max_buffer_size=3)
    for number in range(10):
        capture.append_line("r1", f"line {number}")
    assert [entry.seq for entry in capture.get_logs("r1")] == [8, 9, 10]
    assert len((capture.log_dir / "r1.log").read_text().splitlines()) == 10


def test_a_forgotten_run_is_read_from_its_rotated_files(new: New) -> None:
    capture = new(max_file_bytes=500, backups=3)
    for number in range(100):
        capture.append_line("r1", f"  line {number}", "stderr")
    capture.cleanup_run("r1")
    parts = sorted(path.name for path in capture.log_dir.iterdir())
    assert parts == ["r1.log", "r1.log.1", "r1.log.2", "r1.log.3"]
    assert all(path.stat().st_size <= 500 for path in capture.log_dir.iterdir())
    kept = capture.get_logs("r1")
    assert messages(kept) == [f"  line {n}" for n in range(100 - len(kept), 100)]
    assert (kept[-1].seq, kept[-1].stream) == (100, "stderr")


async def test_a_stream_of_a_forgotten_run_tells_what_is_kept_and_ends(capture: OutputCapture) -> None:
    for text in ("one", "two"):
        capture.append_line("r1", text)
    capture.end_run("r1", 0)
    capture.cleanup_run("r1")
    *lines, end = await frames_of(capture, "r1", after=1)
    assert [json.loads(line.partition("data: ")[2])["message"] for line in lines] == ["two"]
    assert end == 'event: end\ndata: {"exit_code": null}\n\n'


@pytest.mark.parametrize("run_id", ["nobody", "../etc/passwd", "", "a/b"])
def test_an_unknown_run_is_an_error_and_no_endless_stream(capture: OutputCapture, run_id: str) -> None:
    with pytest.raises(LookupError):
        capture.sse_frames(run_id)
    with pytest.raises(LookupError):
        capture.get_logs(run_id)


async def test_followers_get_history_then_live_lines_and_are_let_go(capture: OutputCapture) -> None:
    capture.append_line("r1", "before")
    followers = [asyncio.create_task(frames_of(capture, "r1")) for _ in range(3)]
    await until(lambda: capture._run("r1").followers == 3)
    await asyncio.to_thread(capture.append_line, "r1", 'quote " and \u2028 x')
    capture.end_run("r1", 7)
    for frames in await asyncio.gather(*followers):
        assert [frame.partition("\n")[0] for frame in frames] == ["id: 1", "id: 2", "event: end"]
        assert json.loads(frames[1].partition("data: ")[2])["message"] == 'quote " and \u2028 x'
        assert json.loads(frames[2].partition("data: ")[2]) == {"exit_code": 7}
    assert capture._run("r1").followers == 0


async def test_a_follower_that_breaks_off_is_let_go(capture: OutputCapture) -> None:
    capture.append_line("r1", "one")
    stream = capture.sse_frames("r1")
    await anext(stream)
    await stream.aclose()
    waiting = asyncio.create_task(frames_of(capture, "r1"))
    await until(lambda: capture._run("r1").followers == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert capture._run("r1").followers == 0


async def test_a_follower_that_fell_behind_is_told_how_much(new: New) -> None:
    capture = new(max_buffer_size=5)
    capture.append_line("r1", "0")
    following = capture.subscribe("r1")
    assert (first := await anext(following))
    assert first.message == "0"
    for number in range(1, 20):
        capture.append_line("r1", str(number))
    capture.end_run("r1")
    rest = [entry async for entry in following if entry]
    assert rest[0].message.startswith("14 lines before this one")
    assert messages(rest[1:]) == [str(n) for n in range(15, 20)]


async def test_silence_gets_a_comment_and_no_line(new: New) -> None:
    capture = new(keepalive_s=0.01)
    capture.open_run("r1")
    stream = capture.sse_frames("r1")
    assert await anext(stream) == ": keepalive\n\n"
    await stream.aclose()
    assert capture.get_logs("r1") == []


async def test_threads_and_followers_at_once_lose_and_double_nothing(
    new: Callable[..., OutputCapture],
) -> None:
    capture = new(max_buffer_size=50_000)
    capture.open_run("r1")

    def write(name: int) -> None:
        for number in range(1000):
            capture.append_line("r1", f"{name} {number}")

    followers = [asyncio.create_task(frames_of(capture, "r1")) for _ in range(4)]
    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    capture.end_run("r1")
    want = [f"id: {seq}" for seq in range(1, 8001)]
    for frames in await asyncio.gather(*followers):
        assert [frame.partition("\n")[0] for frame in frames[:-1]] == want
    said = messages(capture.get_logs("r1"))
    for name in range(8):
        mine = [text for text in said if text.startswith(f"{name} ")]
        assert mine == [f"{name} {number}" for number in range(1000)]


def test_a_disk_that_refuses_ends_the_file_and_not_the_run(capture: OutputCapture) -> None:
    capture.log_dir.write_text("a file where the folder should be")
    capture.append_line("r1", "one")
    capture.append_line("r1", "two")
    assert messages(capture.get_logs("r1"))[::2] == ["one", "two"]
    assert "nothing is kept" in capture.get_logs("r1")[1].message


def test_a_run_of_the_registry_changes_only_where_it_is_told() -> None:
    registry = RunRegistry()
    run = registry.create_run("import", {"file": "a.xlsx"})
    assert (run.status, run.exit_code) == (RunStatus.RUNNING, None)
    registry.update_run(run.run_id, RunStatus.FAILED, exit_code=2)
    changed = registry.update_run(run.run_id, error_message="bad file")
    assert (changed.status, changed.exit_code, changed.error_message) == ("failed", 2, "bad file")
    assert changed.parameters == {"file": "a.xlsx"}
    with pytest.raises(LookupError):
        registry.update_run("nobody", RunStatus.FAILED)


def test_a_token_is_set_once_and_tells_who_asked_to_be_told() -> None:
    token, told = CancellationToken(), list[str]()
    token.throw_if_cancelled()
    token.on_cancel(lambda: told.append("first"))
    token.on_cancel(lambda: told.append("second"))()
    token.cancel()
    token.cancel()
    token.on_cancel(lambda: told.append("late"))
    assert (token.is_cancelled(), told) == (True, ["first", "late"])
    with pytest.raises(StopSignal):
        token.throw_if_cancelled()


def test_too_little_of_anything_is_insufficient_resources(tmp_path: Path) -> None:
    assert ResourceManager(folder=tmp_path).check_resources()
    with pytest.raises(ResourceLimitException, match=r"Insufficient resources: disk: .* are needed"):
        ResourceManager(min_free_disk_bytes=1 << 62, folder=tmp_path).check_resources()


def test_every_name_is_there_and_each_half_loads_without_the_other() -> None:
    """A client loads nothing that runs programs; the library neither HTTP, Redis nor a database."""
    assert all(getattr(tailrun, name) for name in tailrun.__all__)
    assert set(tailrun.__all__) <= set(dir(tailrun))
    with pytest.raises(AttributeError):
        tailrun.nothing  # type: ignore[attr-defined] # noqa: B018
    loaded = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    assert "app" not in run_python(f"import tailrun; tailrun.Client; {loaded}").split()
    library = run_python(
        f"import tailrun; tailrun.execute_long_running_task; tailrun.OutputCapture; {loaded}"
    )
    assert not {"httpx2", "redis", "sqlalchemy", "boto3", "fastapi", "pydantic"} & set(library.split())


def test_nothing_posix_only_is_touched_at_import() -> None:
    """As on Windows, these modules and functions do not exist."""
    program = """
import os, signal, sys, asyncio.base_events, asyncio.subprocess, subprocess, tempfile, shutil, importlib.util
for name in ("fcntl", "resource", "pwd", "grp", "termios", "uvloop"):
    sys.modules[name] = None
for name in ("killpg", "setpgid", "getpgid", "fork", "wait4", "set_blocking", "sched_getaffinity"):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGXFSZ", "SIGCONT", "SIGCHLD", "pthread_sigmask"):
    delattr(signal, name)
import tailrun
print(all(getattr(tailrun, name) for name in tailrun.__all__))
"""
    assert run_python(program).split() == ["True"]


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.005)


async def test_half_of_a_surrogate_pair_reaches_every_reader_as_a_sign(
    new: Callable[..., OutputCapture], tmp_path: Path
) -> None:
    """A name of `os.fsdecode` that is no UTF-8; wherever the entry comes from."""
    capture = new()
    capture.append_line("r", "name \udcff 😀")
    capture.append_lines("r", [Line(Stream.STDOUT, "other \ud800")])
    capture.append_line("r", "next")
    capture.end_run("r", 0)
    assert messages(capture.get_logs("r")) == ["name \ufffd 😀", "other \ufffd", "next"]
    assert "".join(await frames_of(capture, "r")).encode()
    assert LogEntry(capture.get_logs("r")[0].timestamp, "\udc80\udc81").to_json().encode()
    assert "next" in (tmp_path / "logs" / "r.log").read_text(encoding="utf-8")
