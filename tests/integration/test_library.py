"""The library with real programs: both pipes at once, odd output, every way to stop, a whole service."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import psutil
import pytest
from support.reaper import marked

from tailrun import (
    CancellationToken,
    OutputCapture,
    ResourceManager,
    RunRegistry,
    RunStatus,
    StopSignal,
    TaskNotStarted,
    execute_long_running_task,
)

LIBRARY = Path(__file__).parents[2] / "docs" / "library.md"
FLOOD = """
import os, threading
def write(fd, byte):
    for _ in range(100):
        left = (byte * 99 + b"\\n") * 1000
        while left:
            left = left[os.write(fd, left):]
threads = [threading.Thread(target=write, args=a) for a in ((1, b"o"), (2, b"e"))]
[t.start() for t in threads]
[t.join() for t in threads]
"""
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; "
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(6000)"])
print(child.pid)
time.sleep(6000)
"""


@pytest.fixture
def capture(tmp_path: Path) -> Iterator[OutputCapture]:
    capture = OutputCapture(tmp_path / "logs", max_buffer_size=500_000)
    yield capture
    capture.close()


def script(folder: Path, source: str) -> Path:
    path = folder / "script.py"
    path.write_text(source)
    return path


def said(capture: OutputCapture, stream: str = "stdout") -> list[str]:
    return [entry.message for entry in capture.get_logs("r1") if entry.stream == stream]


async def printed(capture: OutputCapture, text: str, run_id: str = "r1") -> None:
    async with asyncio.timeout(60):
        async for entry in capture.subscribe(run_id):
            if entry is not None and text in entry.message:
                return


async def shell(capture: OutputCapture, command: str) -> int:
    async with asyncio.timeout(60):
        return await execute_long_running_task("r1", "sh", capture, ["-c", command])


async def test_ten_megabytes_on_each_pipe_at_once(capture: OutputCapture, tmp_path: Path) -> None:
    async with asyncio.timeout(120):
        assert await execute_long_running_task("r1", script(tmp_path, FLOOD), capture) == 0
    assert said(capture) == ["o" * 99] * 100_000
    assert said(capture, "stderr") == ["e" * 99] * 100_000


async def test_a_line_of_five_megabytes_is_whole_in_its_pieces(capture: OutputCapture) -> None:
    assert await shell(capture, "head -c 5000000 /dev/zero | tr '\\0' x; echo; echo next") == 0
    *pieces, last = capture.get_logs("r1")
    assert "".join(piece.message for piece in pieces) == "x" * 5_000_000
    assert [piece.split for piece in pieces] == [True] * 4 + [False]
    assert last.message == "next"


async def test_odd_output_and_ends(capture: OutputCapture) -> None:
    code = await shell(capture, r"printf 'a\377b\n   deep  \nno end'; exit 4")
    assert (code, said(capture)) == (4, ["a\ufffdb", "   deep  ", "no end"])


async def test_an_instant_end_loses_no_line(capture: OutputCapture) -> None:
    for number in range(20):
        assert await shell(capture, f"printf 'one\\n{number}'") == 0
    assert said(capture) == [text for number in range(20) for text in ("one", str(number))]


async def test_a_program_that_closes_its_output_goes_on(capture: OutputCapture, tmp_path: Path) -> None:
    assert await shell(capture, f"exec >&- 2>&-; sleep 0.3; touch {tmp_path}/late; exit 5") == 5
    assert (tmp_path / "late").exists()


async def test_what_a_program_leaves_behind_is_ended(capture: OutputCapture) -> None:
    assert await shell(capture, "sleep 6000 & echo $!") == 0
    assert not alive(int(said(capture)[0]))


async def test_a_folder_that_is_missing_is_said(capture: OutputCapture, tmp_path: Path) -> None:
    with pytest.raises(TaskNotStarted, match="working folder"):
        await execute_long_running_task("r1", "true", capture, cwd=tmp_path / "gone")


async def test_cancelling_the_task_ends_the_whole_group_and_goes_on(
    capture: OutputCapture, tmp_path: Path
) -> None:
    """First asked, then killed, the child too; the status is written, and CancelledError comes out."""
    registry = RunRegistry()
    registry.create_run("m", run_id="r1")
    path = script(tmp_path, STUBBORN)
    work = execute_long_running_task("r1", path, capture, registry=registry, grace_s=0.5)
    task = asyncio.create_task(work)
    await started(capture)
    await printed(capture, "up")
    began = time.monotonic()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began >= 0.5
    assert not alive(int(next(text for text in said(capture) if text.isdecimal())))
    run = registry.get_run("r1")
    assert (run.status, run.exit_code) == (RunStatus.CANCELLED, 137)


async def test_a_token_from_another_thread_stops_the_program(capture: OutputCapture) -> None:
    token, registry = CancellationToken(), RunRegistry()
    registry.create_run("m", run_id="r1")
    arguments = ["-c", "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done"]
    work = execute_long_running_task("r1", "sh", capture, arguments, token=token, registry=registry)
    task = asyncio.create_task(work)
    await started(capture)
    await printed(capture, "ready")
    await asyncio.to_thread(token.cancel)
    with pytest.raises(StopSignal):
        await asyncio.wait_for(task, 60)
    assert said(capture)[-1] == "bye"
    assert registry.get_run("r1").status is RunStatus.CANCELLED
    with pytest.raises(StopSignal):
        await execute_long_running_task("r2", "sh", capture, arguments, token=token)


async def test_a_time_limit_is_a_failure_that_says_so(capture: OutputCapture) -> None:
    registry = RunRegistry()
    registry.create_run("m", run_id="r1")
    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        await execute_long_running_task("r1", "sleep", capture, ["6000"], registry=registry, timeout_s=0.2)
    run = registry.get_run("r1")
    assert (run.status, run.exit_code) == (RunStatus.FAILED, 143)
    assert run.error_message == "stopped at its timeout_s of 0.2 s"


async def test_no_more_runs_at_once_than_there_are_places(capture: OutputCapture, tmp_path: Path) -> None:
    """Each script writes when it begins and ends; one that waits can be cancelled too."""
    resources, registry = ResourceManager(max_concurrent=2), RunRegistry()
    source = (
        "import sys, time\nprint('begin', time.monotonic())\ntime.sleep(0.3)\nprint('end', time.monotonic())"
    )
    path = script(tmp_path, source)

    async def one(run_id: str) -> int:
        registry.create_run("m", run_id=run_id)
        return await execute_long_running_task(run_id, path, capture, registry=registry, resources=resources)

    tasks = [asyncio.create_task(one(f"run-{n}")) for n in range(6)]
    await started(capture, "run-5")
    tasks[5].cancel()
    async with asyncio.timeout(60):
        assert await asyncio.gather(*tasks[:5]) == [0] * 5
    with pytest.raises(asyncio.CancelledError):
        await tasks[5]
    assert registry.get_run("run-5").status is RunStatus.CANCELLED
    moments = sorted(
        (float(word[1]), word[0])
        for n in range(5)
        for word in (entry.message.split() for entry in capture.get_logs(f"run-{n}"))
    )
    running = most = 0
    for _, what in moments:
        running += 1 if what == "begin" else -1
        most = max(most, running)
    assert most <= 2


async def test_nothing_is_left_open(capture: OutputCapture, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor, no child, dead or alive, and nothing that a program has left in the background."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("OF_THIS_TEST", mark)
    await shell(capture, "true")
    open_before, children_before = set(Path("/proc/self/fd").iterdir()), psutil.Process().children()
    for _ in range(20):
        await asyncio.gather(*(shell(capture, "echo x; sleep 6000 &") for _ in range(3)))
    assert set(Path("/proc/self/fd").iterdir()) == open_before
    assert psutil.Process().children() == children_before
    assert list(marked("OF_THIS_TEST", mark)) == []


# -- the examples of docs/library.md ------------------------------------------------------


def example(name: str) -> str:
    found = re.search(rf"```python\n(# {name}\n.*?)```", LIBRARY.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_the_first_example_prints_what_it_ran(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text(example("first.py"))
    done = subprocess.run(
        [sys.executable, "first.py"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines() == [
        *("info line 0", "info line 1", "info line 2", "error ERROR: that was all", "exit code 0"),
    ]
    assert (tmp_path / "logs" / "run-1.log").exists()


def test_the_example_that_awaits_streams_json_and_sets_the_run(tmp_path: Path) -> None:
    (tmp_path / "awaiting.py").write_text(example("awaiting.py"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "awaiting.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    *events, end = done.stdout.splitlines()
    said = [json.loads(event.removeprefix("data: "))["message"] for event in events]
    assert (said, end) == (["my own line", "hello"], "completed 0")


@asynccontextmanager
async def service(folder: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """Serve the example with a real uvicorn."""
    (folder / "service.py").write_text(example("service.py"))
    command = [sys.executable, "-m", "uvicorn", "service:app", "--port", "0", "--log-level", "info"]
    with (folder / "uvicorn.log").open("w") as log:
        server = subprocess.Popen(  # noqa: ASYNC220
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        async with asyncio.timeout(60):
            while not (
                found := re.search(r"http://127\.0\.0\.1:(\d+)", (folder / "uvicorn.log").read_text())
            ):
                assert server.poll() is None, (folder / "uvicorn.log").read_text()
                await asyncio.sleep(0.05)
        async with httpx2.AsyncClient(base_url=found[0], timeout=60) as client:
            yield client
    finally:
        server.terminate()
        server.wait(60)


async def test_the_service_of_the_docs_streams_cancels_and_bounds(tmp_path: Path) -> None:
    source = "import time\nprint('ERROR: first')\n" + "input() if False else time.sleep(6000)\n"
    waiting = script(tmp_path, source)
    (tmp_path / "quick.py").write_text("import sys\nprint('hello', sys.argv[1])\nsys.exit(3)")
    async with service(tmp_path) as client:
        quick = await begin(client, tmp_path / "quick.py", "you")
        frames = await frames_of(client, quick)
        assert '"message": "hello you"' in frames[0]
        assert frames[-1] == 'event: end\ndata: {"exit_code": 3}'
        assert await state(client, quick) == ("failed", 3)
        assert (await frames_of(client, quick, after=1))[0].startswith("event: end")

        long = await begin(client, waiting)
        async with client.stream("GET", f"/runs/{long}/logs/stream") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.aiter_lines()
            assert await anext(lines) == "id: 1"
            assert '"level": "error"' in await anext(lines)
            assert (await client.post(f"/runs/{long}/cancel")).status_code == 202
            rest = [line async for line in lines]
        assert "event: end" in rest
        assert await state(client, long) == ("cancelled", 143)
        assert (await client.get("/runs/nobody/logs/stream")).status_code == 404


async def begin(client: httpx2.AsyncClient, path: Path, *args: str) -> str:
    answer = await client.post("/runs", params={"script": str(path)}, json=list(args))
    assert answer.status_code == 201
    return answer.json()["run_id"]


async def frames_of(client: httpx2.AsyncClient, run_id: str, after: int = 0) -> list[str]:
    headers = {"Last-Event-ID": str(after)}
    answer = await client.get(f"/runs/{run_id}/logs/stream", headers=headers)
    return answer.text.strip().split("\n\n")


async def state(client: httpx2.AsyncClient, run_id: str) -> tuple[str, int]:
    body = (await client.get(f"/runs/{run_id}")).json()
    return body["status"], body["exit_code"]


async def started(capture: OutputCapture, run_id: str = "r1") -> None:
    """Wait until the task has opened its run."""
    async with asyncio.timeout(60):
        while run_id not in capture._runs:
            await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
