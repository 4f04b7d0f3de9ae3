"""What a real program's output becomes on its way through the pipes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from executor_conformance import Recorder, ended, shell, tool
from local_tools import beating, executor_at

from app.execution.process import LocalExecutor
from tailrun.process.lines import Level, Line, Stream
from tailrun.process.pipes import NO_TEXT
from tailrun.process.stop import StopReason, StopToken


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[LocalExecutor]:
    async with beating(executor_at(tmp_path)) as executor:
        yield executor


async def test_a_line_of_five_megabytes_comes_in_marked_pieces(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    script = "print('€' * 1_666_667 + 'end')"
    _, sink = await ended(executor, tool(tmp_path, "python3", "-c", script))
    assert "".join(line.content for line in sink.lines) == "€" * 1_666_667 + "end"
    assert [line.split for line in sink.lines] == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        (
            r"printf 'ok\nb\377d\n'; sleep 0.3; printf '\376\n' >&2; echo end",
            ["ok", "b\ufffdd", "\ufffd", "end"],
        ),
        (r"printf 'a\0b\n'", ["a\ufffdb"]),
        (r"printf 'no line end \303'", ["no line end \ufffd"]),
    ],
)
async def test_binary_output_is_replaced_with_one_warning(
    executor: LocalExecutor, tmp_path: Path, script: str, shown: list[str]
) -> None:
    """Behind the first line that needed it, once for both pipes together."""
    _, sink = await ended(executor, shell(tmp_path, script))
    assert sorted(line.content for line in sink.lines if line != NO_TEXT) == sorted(shown)
    assert sink.lines.count(NO_TEXT) == 1
    assert all("\ufffd" not in line.content for line in sink.lines[: sink.lines.index(NO_TEXT) - 1])


async def test_text_is_no_binary(executor: LocalExecutor, tmp_path: Path) -> None:
    """Not even the replacement character itself, when a program prints it, or a character in two writes."""
    _, sink = await ended(
        executor, shell(tmp_path, r"printf '\357\277\275 \303'; sleep 0.2; printf '\244\n'")
    )
    assert [line.content for line in sink.lines] == ["\ufffd ä"]


async def test_a_slow_progress_bar_shows_each_state_and_ends_as_a_line(
    executor: LocalExecutor,
    tmp_path: Path,
) -> None:
    script = "for i in 1 2 3; do printf '%s0%%\\r' $i; sleep 0.5; done; echo done"
    _, sink = await ended(executor, shell(tmp_path, script))
    assert [(line.content, line.cr) for line in sink.lines] == [
        ("10%", True),
        ("20%", True),
        ("30%", True),
        ("done", False),
    ]


async def test_a_bar_that_stands_still_shows_its_last_state(executor: LocalExecutor, tmp_path: Path) -> None:
    sink, stop = Recorder(), StopToken()
    script = "printf '98%%\\r99%%\\r100%%\\r'; sleep 60"
    running = asyncio.create_task(executor.run(shell(tmp_path, script), sink, stop))
    await sink.until("100%")
    stop.stop(StopReason.DRAIN)
    await running
    assert sink.lines[0] == Line(Stream.STDOUT, "98%", cr=True)


async def test_a_fast_progress_bar_is_held_to_five_updates_a_second(
    executor: LocalExecutor,
    tmp_path: Path,
) -> None:
    script = "import time\nfor i in range(500): print(i, end='\\r'); time.sleep(0.002)\nprint('end')"
    result, sink = await ended(executor, tool(tmp_path, "python3", "-c", script))
    updates = [line for line in sink.lines if line.cr]
    assert 2 <= len(updates) <= result.usage.wall_s * 5 + 2
    assert sink.lines[-1] == Line(Stream.STDOUT, "end")


async def test_what_a_program_left_behind_may_finish_its_output(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    script = "exec > >(sleep 0.2; tee log); for i in $(seq 2000); do echo line $i; done"
    result, sink = await ended(executor, tool(tmp_path, "bash", "-c", script))
    assert result.exit_code == 0
    assert sink.of(Stream.STDOUT) == [f"line {i}" for i in range(1, 2001)]


async def test_what_is_left_behind_loses_nothing_to_a_slow_sink(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    got = Recorder()

    async def slow(lines: Sequence[Line]) -> None:
        await asyncio.sleep(0.3)
        await got(lines)

    script = "exec > >(tee log); seq 200000"
    result = await executor.run(tool(tmp_path, "bash", "-c", script), slow, StopToken())
    assert result.exit_code == 0
    assert got.of(Stream.STDOUT) == [str(i) for i in range(1, 200_001)]


FLOODED = """
import asyncio, sys
from pathlib import Path
from executor_conformance import ended, shell
from local_tools import beating, executor_at
from tailrun.process.stop import StopToken

def peak_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

async def main(folder):
    count = 0

    async def counting(lines):
        nonlocal count
        count += len(lines)
        await asyncio.sleep(0.001)

    async with beating(executor_at(folder)) as executor:
        await ended(executor, shell(folder, "true"))
        before = peak_kib()
        flood = shell(folder, "yes 0123456789 | head -c 20000000")
        result = await executor.run(flood, counting, StopToken())
    print(result.exit_code, result.stopped, count, peak_kib() - before)

asyncio.run(main(Path(sys.argv[1])))
"""


def test_lines_of_a_flood_use_bounded_memory(tmp_path: Path) -> None:
    """In a process of its own: what another test has once needed would hide it."""
    root = Path(__file__).parents[2]
    paths = (root, root / "tests", root / "tests" / "integration")
    done = subprocess.run(
        [sys.executable, "-c", FLOODED, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *outcome, grown_kib = done.stdout.split()
    assert outcome == ["0", "None", str(20_000_000 // 11 + 1)]
    assert int(grown_kib) < 60_000


async def test_a_broken_pipe_ends_programs_as_everywhere(executor: LocalExecutor, tmp_path: Path) -> None:
    _, sink = await ended(executor, tool(tmp_path, "bash", "-c", "set -o pipefail; yes | head -1; echo $?"))
    assert sink.of(Stream.STDOUT) == ["y", "141"]
    assert sink.of(Stream.STDERR) == []


async def test_levels_are_read(executor: LocalExecutor, tmp_path: Path) -> None:
    _, sink = await ended(executor, shell(tmp_path, "echo ERROR: x; echo WARNING:root:x >&2; echo plain"))
    assert {line.content: line.level for line in sink.lines} == {
        "ERROR: x": Level.ERROR,
        "WARNING:root:x": Level.WARNING,
        "plain": Level.INFO,
    }
