"""The local executor keeps the executor's promises, and gives back what it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from executor_conformance import Alive, ExecutorConformance, Recorder, ended, shell, tool
from local_tools import beating, children, executor_at, open_fds, programs_of

from app.execution.process import LocalExecutor
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Stream
from tailrun.process.stop import StopReason, StopToken


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[LocalExecutor]:
    async with beating(executor_at(tmp_path)) as executor:
        yield executor


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def alive() -> Alive:
    return programs_of


class TestLocalExecutor(ExecutorConformance):
    pass


async def test_two_hundred_runs_leave_no_fd_and_no_zombie(
    executor: LocalExecutor, cwd: Path, tmp_path: Path
) -> None:
    await ended(executor, tool(cwd, "true"))
    before = open_fds()
    for _ in range(20):
        await asyncio.gather(*(ended(executor, shell(cwd, "echo x; sleep 0.01 &")) for _ in range(9)))
        with pytest.raises(RunFailure):
            await ended(executor, tool(cwd, "no-such-program"))
    assert open_fds() == before
    assert children() == []
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_usage_is_that_of_the_whole_tree(executor: LocalExecutor, cwd: Path) -> None:
    burn = "import time\nx = bytearray(60_000_000)\nwhile time.process_time() < 0.4: pass"
    result, _ = await ended(executor, shell(cwd, f"python3 -c '{burn}'"))
    assert 0.4 <= result.usage.cpu_s < 30
    assert result.usage.wall_s >= 0.4
    assert result.usage.max_rss_bytes > 60_000_000


async def test_a_file_that_may_not_run_fails_for_good(executor: LocalExecutor, cwd: Path) -> None:
    (cwd / "plain").write_text("text")
    with pytest.raises(RunFailure, match="executable") as caught:
        await ended(executor, tool(cwd, "./plain"))
    assert (caught.value.code, caught.value.retried) == (ErrorCode.START_FAILED, False)


async def test_a_working_folder_that_is_gone_fails_for_good(executor: LocalExecutor, cwd: Path) -> None:
    with pytest.raises(RunFailure, match="working folder") as caught:
        await ended(executor, tool(cwd / "gone", "true"))
    assert (caught.value.code, caught.value.retried) == (ErrorCode.START_FAILED, False)


async def test_arguments_that_are_too_long_are_said_to_be(executor: LocalExecutor, cwd: Path) -> None:
    with pytest.raises(RunFailure, match="too long"):
        await ended(executor, tool(cwd, "true", "x" * 3_000_000))


async def test_a_reserved_variable_is_refused(executor: LocalExecutor, cwd: Path) -> None:
    with pytest.raises(RunFailure, match="TAILRUN_RUN_ID"):
        await ended(executor, tool(cwd, "true", TAILRUN_RUN_ID="another"))


@pytest.mark.parametrize("odd", ["a\0b", "a\ud800b"])
async def test_text_that_no_program_can_be_given_fails_for_good(
    executor: LocalExecutor,
    cwd: Path,
    odd: str,
) -> None:
    with pytest.raises(RunFailure, match="holds") as caught:
        await ended(executor, tool(cwd, "true", odd))
    assert (caught.value.code, caught.value.retried) == (ErrorCode.START_FAILED, False)


async def test_an_argument_may_hold_any_text(executor: LocalExecutor, cwd: Path) -> None:
    odd = "line\nbreak 'quote' \"double\" $HOME ✓ = \x01"
    _, sink = await ended(executor, tool(cwd, "printf", "%s", odd, ODD=odd))
    assert sink.of(Stream.STDOUT) == odd.split("\n")


async def test_secrets_of_the_worker_do_not_reach_a_tool(
    executor: LocalExecutor,
    cwd: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "API_TOKEN", "S3_SECRET_KEY", "OTHER"):
        monkeypatch.setenv(name, "to-be-kept")
    _, sink = await ended(executor, tool(cwd, "env"))
    names = {line.partition("=")[0] for line in sink.of(Stream.STDOUT)}
    assert names - {"TZ"} == {
        *("PATH", "HOME", "TMPDIR", "LANG", "PYTHONUNBUFFERED", "TERM", "USER", "LOGNAME"),
        *("TAILRUN_RUN_ID", "TAILRUN_ATTEMPT", "TAILRUN_STEP", "TAILRUN_WORKSPACE"),
    }


async def test_python_is_there_and_is_unbuffered(executor: LocalExecutor, cwd: Path) -> None:
    sink, stop = Recorder(), StopToken()
    script = "import time; print('at once'); time.sleep(60)"
    running = asyncio.create_task(executor.run(tool(cwd, "python", "-c", script), sink, stop))
    await sink.until("at once")
    stop.stop(StopReason.DRAIN)
    await running


async def test_a_closed_executor_kills_what_runs_and_refuses_more(executor: LocalExecutor, cwd: Path) -> None:
    what, sink = shell(cwd, "echo ready; sleep 60"), Recorder()
    running = asyncio.create_task(executor.run(what, sink, StopToken()))
    await sink.until("ready")
    await executor.close()
    assert (await running).stopped is StopReason.DRAIN
    assert programs_of(what.run_id) == []
    with pytest.raises(RunFailure):
        await executor.run(what, sink, StopToken())


async def test_without_a_heartbeat_the_program_is_killed(cwd: Path, tmp_path: Path) -> None:
    result, _ = await ended(executor_at(tmp_path, silence_s=0.3), tool(cwd, "sleep", "60"))
    assert (result.exit_code, result.stopped) == (137, StopReason.LOST)


@pytest.mark.parametrize("delay_s", [0, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03])
async def test_cancelling_during_the_start_leaves_nothing(
    executor: LocalExecutor,
    cwd: Path,
    delay_s: float,
) -> None:
    await ended(executor, tool(cwd, "true"))  # what it keeps open until it is closed is open now
    before = open_fds()
    for _ in range(5):
        what = tool(cwd, "sleep", "60")
        task = asyncio.create_task(executor.run(what, Recorder(), StopToken()))
        await asyncio.sleep(delay_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert programs_of(what.run_id) == []
    assert open_fds() == before
    assert children() == []
