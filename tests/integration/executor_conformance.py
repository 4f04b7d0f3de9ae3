"""What every executor must do: subclass `ExecutorConformance` beside fixtures for one of them.

The subclass's module provides the fixtures `executor` (with a heartbeat going on), `cwd`, and
`alive`: a function from a run id to whatever of its programs still runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import cast

import pytest

from app.execution.executor import Executor, ToolResult, ToolRun
from app.storage.workspace import Checkout, Patience, Workspace, impatient
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Line, Stream
from tailrun.process.stop import StopReason, StopToken

Alive = Callable[[str], list[object]]

IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print("ready", flush=True)
while True:
    time.sleep(60)
"""
FLOOD = """
import os, threading
def write(fd, byte):
    line = byte * 99 + b"\\n"
    for _ in range(100):
        left = line * 1000
        while left:
            left = left[os.write(fd, left):]
threads = [threading.Thread(target=write, args=a) for a in ((1, b"o"), (2, b"e"))]
[t.start() for t in threads]
[t.join() for t in threads]
"""


class Recorder:
    """A sink that keeps everything and lets a test wait for a line."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._more = asyncio.Event()

    async def __call__(self, lines: Sequence[Line]) -> None:
        self.lines += lines
        self._more.set()

    def of(self, stream: Stream) -> list[str]:
        return [line.content for line in self.lines if line.stream is stream]

    async def until(self, content: str) -> None:
        async with asyncio.timeout(60):
            while all(line.content != content for line in self.lines):
                self._more.clear()
                await self._more.wait()


class Folder:
    """As much of a workspace as an executor needs, in a folder that is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.asynccontextmanager
    async def checkout(self, _patience: Patience = impatient) -> AsyncIterator[Checkout]:
        yield Checkout(self.path, [])


def tool(cwd: Path, *argv: str, timeout_s: float | None = None, **env: str) -> ToolRun:
    return ToolRun(f"run-{uuid.uuid4().hex}", 1, "s1", argv, cast("Workspace", Folder(cwd)), env, timeout_s)


def shell(cwd: Path, script: str, **more: object) -> ToolRun:
    return tool(cwd, "sh", "-c", script, **more)  # type: ignore[arg-type]


async def ended(
    executor: Executor, what: ToolRun, stop: StopToken | None = None
) -> tuple[ToolResult, Recorder]:
    sink = Recorder()
    async with asyncio.timeout(60):
        return await executor.run(what, sink, stop or StopToken()), sink


async def stopped_at(
    executor: Executor,
    what: ToolRun,
    line: str,
    *reasons: StopReason,
    sink: Recorder | None = None,
) -> tuple[ToolResult, float]:
    """Run until `line` was printed, then stop; return the result and how long stopping took."""
    sink, stop = sink or Recorder(), StopToken()
    running = asyncio.create_task(executor.run(what, sink, stop))
    await sink.until(line)
    began = time.monotonic()
    for reason in reasons:
        stop.stop(reason)
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        return await running, time.monotonic() - began


class ExecutorConformance:
    """The promises of `app.execution.executor`."""

    async def test_lines_carry_their_stream_and_keep_their_order(self, executor: Executor, cwd: Path) -> None:
        result, sink = await ended(
            executor, shell(cwd, "for i in 1 2 3; do echo out$i; echo err$i >&2; done")
        )
        assert (result.exit_code, result.signal, result.stopped) == (0, None, None)
        assert sink.of(Stream.STDOUT) == ["out1", "out2", "out3"]
        assert sink.of(Stream.STDERR) == ["err1", "err2", "err3"]

    async def test_the_exit_code_is_the_programs(self, executor: Executor, cwd: Path) -> None:
        result, _ = await ended(executor, shell(cwd, "exit 7"))
        assert (result.exit_code, result.signal) == (7, None)

    async def test_death_by_a_signal_counts_as_shells_count(self, executor: Executor, cwd: Path) -> None:
        result, _ = await ended(executor, shell(cwd, "kill -SEGV $$"))
        assert (result.exit_code, result.signal, result.stopped) == (139, 11, None)

    async def test_an_instant_end_loses_no_line(self, executor: Executor, cwd: Path) -> None:
        for _ in range(20):
            _, sink = await ended(executor, shell(cwd, "printf 'one\\ntwo'"))
            assert sink.of(Stream.STDOUT) == ["one", "two"]

    async def test_a_missing_program_fails_for_good_and_is_named(self, executor: Executor, cwd: Path) -> None:
        with pytest.raises(RunFailure) as caught:
            await ended(executor, tool(cwd, "no-such-program"))
        assert caught.value.code is ErrorCode.START_FAILED
        assert caught.value.retried is False
        assert "no-such-program" in caught.value.message

    async def test_bytes_that_are_no_utf8_become_replacements(self, executor: Executor, cwd: Path) -> None:
        _, sink = await ended(executor, shell(cwd, r"printf 'a\377b\n\303'"))
        assert sink.of(Stream.STDOUT) == ["a�b", "�"]

    async def test_ten_megabytes_on_each_pipe_at_once(self, executor: Executor, cwd: Path) -> None:
        result, sink = await ended(executor, tool(cwd, "python3", "-c", FLOOD))
        assert result.exit_code == 0
        assert sink.of(Stream.STDOUT) == ["o" * 99] * 100_000
        assert sink.of(Stream.STDERR) == ["e" * 99] * 100_000

    async def test_a_program_that_closes_its_output_goes_on(self, executor: Executor, cwd: Path) -> None:
        result, _ = await ended(executor, shell(cwd, "exec >&- 2>&-; sleep 0.5; touch late; exit 5"))
        assert result.exit_code == 5
        assert (cwd / "late").exists()

    async def test_environment_and_folder_are_the_tools(self, executor: Executor, cwd: Path) -> None:
        what = shell(
            cwd, "echo $COLOUR; echo $TAILRUN_RUN_ID/$TAILRUN_ATTEMPT/$TAILRUN_STEP; touch here", COLOUR="red"
        )
        _, sink = await ended(executor, what)
        assert sink.of(Stream.STDOUT) == ["red", f"{what.run_id}/1/s1"]
        assert (cwd / "here").exists()

    async def test_the_next_step_finds_the_folder_as_this_one_left_it(
        self, executor: Executor, cwd: Path
    ) -> None:
        """Links, empty folders, executables; a repository is one."""
        git = "git -c user.name=a -c user.email=a@b -C repo"
        made, _ = await ended(
            executor,
            shell(
                cwd,
                "mkdir -p empty/inner bin; echo 'echo ran' > bin/run; chmod 755 bin/run; ln -s bin/run link; "
                f"git init -q repo; echo 1 > repo/f; ln -s f repo/l; {git} add .; {git} commit -qm one",
            ),
        )
        assert made.exit_code == 0
        result, sink = await ended(
            executor,
            shell(
                cwd,
                f"sh -c ./link; readlink link; ls -d empty/inner; {git} status --porcelain; "
                f"{git} fsck --strict; {git} log --format=%s; "
                "rm -rf empty repo bin link; mkdir -p bin/left; ln -s left bin/l",
            ),
        )
        assert (result.exit_code, sink.of(Stream.STDOUT)) == (0, ["ran", "bin/run", "empty/inner", "one"])
        _, sink = await ended(executor, shell(cwd, "find . -mindepth 1 | sort; rm -r bin"))
        assert sink.of(Stream.STDOUT) == ["./bin", "./bin/l", "./bin/left"]

    async def test_standard_input_is_empty(self, executor: Executor, cwd: Path) -> None:
        _, sink = await ended(executor, shell(cwd, "cat; echo done"))
        assert sink.of(Stream.STDOUT) == ["done"]

    async def test_cancel_of_an_obedient_program_takes_less_than_a_second(
        self,
        executor: Executor,
        cwd: Path,
        alive: Alive,
        slack: float,
    ) -> None:
        what = shell(cwd, "echo ready; exec sleep 6000")
        result, took_s = await stopped_at(executor, what, "ready", StopReason.CANCEL)
        assert (result.exit_code, result.signal, result.stopped) == (143, 15, StopReason.CANCEL)
        assert took_s < 1 * slack
        assert alive(what.run_id) == []

    async def test_a_program_may_end_well_when_asked(self, executor: Executor, cwd: Path) -> None:
        what = shell(cwd, "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
        result, _ = await stopped_at(executor, what, "ready", StopReason.CANCEL)
        assert (result.exit_code, result.stopped) == (0, StopReason.CANCEL)

    async def test_a_program_that_ignores_sigterm_is_killed_after_the_grace(
        self,
        executor: Executor,
        cwd: Path,
        alive: Alive,
        slack: float,
    ) -> None:
        what = tool(cwd, "python3", "-u", "-c", IGNORES_SIGTERM)
        result, took_s = await stopped_at(executor, what, "ready", StopReason.CANCEL)
        assert (result.exit_code, result.stopped) == (137, StopReason.CANCEL)
        assert 0.9 < took_s < 4 * slack
        assert alive(what.run_id) == []

    @pytest.mark.parametrize("reason", [StopReason.DRAIN, StopReason.LOST])
    async def test_drain_and_loss_kill_without_grace(
        self,
        executor: Executor,
        cwd: Path,
        reason: StopReason,
        slack: float,
    ) -> None:
        """The program is not asked first."""
        what, sink = tool(cwd, "python3", "-u", "-c", IGNORES_SIGTERM), Recorder()
        result, took_s = await stopped_at(executor, what, "ready", reason, sink=sink)
        assert (result.exit_code, result.stopped) == (137, reason)
        assert sink.of(Stream.STDOUT) == ["ready"]
        assert took_s < 0.9 * slack

    async def test_loss_ends_the_grace_of_a_cancel(self, executor: Executor, cwd: Path, slack: float) -> None:
        what = tool(cwd, "python3", "-u", "-c", IGNORES_SIGTERM)
        result, took_s = await stopped_at(executor, what, "ready", StopReason.CANCEL, StopReason.LOST)
        assert (result.exit_code, result.stopped) == (137, StopReason.LOST)
        assert took_s < 0.9 * slack

    async def test_its_own_time_limit_ends_a_silent_program(
        self, executor: Executor, cwd: Path, slack: float
    ) -> None:
        began = time.monotonic()
        result, _ = await ended(executor, tool(cwd, "sleep", "6000", timeout_s=0.3))
        assert result.stopped is StopReason.TIMEOUT
        assert time.monotonic() - began < 2 * slack

    async def test_a_stop_from_before_the_start_counts(self, executor: Executor, cwd: Path) -> None:
        stop = StopToken()
        stop.stop(StopReason.CANCEL)
        result, _ = await ended(executor, tool(cwd, "sleep", "60"), stop)
        assert result.stopped is StopReason.CANCEL

    async def test_an_error_of_the_sink_kills_the_program_and_goes_on(
        self,
        executor: Executor,
        cwd: Path,
        alive: Alive,
    ) -> None:
        async def broken(lines: Sequence[Line]) -> None:
            raise OSError("no room")

        what = shell(cwd, "echo ready; sleep 60")
        with pytest.raises(OSError, match="no room"):
            await executor.run(what, broken, StopToken())
        assert alive(what.run_id) == []

    async def test_cancelling_the_task_kills_the_program_first(
        self,
        executor: Executor,
        cwd: Path,
        alive: Alive,
    ) -> None:
        what, sink = shell(cwd, "echo ready; sleep 60 & sleep 60"), Recorder()
        task = asyncio.create_task(executor.run(what, sink, StopToken()))
        await sink.until("ready")
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert alive(what.run_id) == []

    async def test_a_slow_sink_stops_the_program_at_its_pipe(self, executor: Executor, cwd: Path) -> None:
        opened, got = asyncio.Event(), Recorder()

        async def slow(lines: Sequence[Line]) -> None:
            await got(lines)
            await opened.wait()

        script = "import sys\nfor i in range(200_000): print('x' * 99)\nopen('done', 'w').close()"
        running = asyncio.create_task(executor.run(tool(cwd, "python3", "-c", script), slow, StopToken()))
        await got.until("x" * 99)
        before = len(got.lines)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(running), 0.5)
        assert not (cwd / "done").exists()
        assert len(got.lines) == before
        opened.set()
        assert (await running).exit_code == 0
        assert len(got.lines) == 200_000
