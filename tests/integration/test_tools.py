"""The tools that run programs, on real programs of this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.agent_context import Place, open_place

from app.agent.tools import interpreters
from app.core.errors import LostOwnership
from app.plan.steps import argv_step
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Level, Stream
from tailrun.process.stop import StopReason


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with open_place(tmp_path) as place:
        yield place


async def test_a_command_line_works_in_the_runs_files(place: Place) -> None:
    await place.call("file_write", path="in.txt", content="b\na\n")
    outcome = await place.call("shell", command="sort in.txt | tee out.txt; rm in.txt; echo oops >&2")
    assert outcome.exit_code == 0
    assert outcome.result == {"changed": 1, "removed": 1}
    assert {(file.path, file.size) for file in outcome.files} == {("out.txt", 4), ("in.txt", -1)}
    assert await place.content("out.txt") == b"a\nb\n"
    assert place.log.stdout == ["a", "b"]
    assert [line.content for _, line in place.log.of("line") if line.stream is Stream.STDERR] == ["oops"]
    assert outcome.usage is not None
    assert outcome.usage.wall_s > 0


async def test_a_command_line_is_bash_where_there_is_bash(place: Place) -> None:
    await place.call("shell", command='[[ -n "$BASH_VERSION" ]] && echo bash')
    assert place.log.stdout == ["bash"]


async def test_without_bash_a_command_line_is_for_sh(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.executor, "has_program", lambda name, _: name != "bash")
    await place.call("shell", command="echo $0")
    assert place.log.stdout == ["sh"]


async def test_argv_reaches_the_program_as_it_is(place: Place) -> None:
    outcome = await place.call_step(argv_step(["printf", r"%s\n", "a b", "$HOME", "ü;ls"]))
    assert outcome.exit_code == 0
    assert place.log.stdout == ["a b", "$HOME", "ü;ls"]


async def test_a_program_that_does_not_exist_fails_for_good(place: Place) -> None:
    with pytest.raises(RunFailure) as failed:
        await place.call_step(argv_step(["no-such-program"]))
    assert (failed.value.code, failed.value.retried) == (ErrorCode.START_FAILED, False)
    assert "no-such-program" in failed.value.message


async def test_python_code_sees_files_modules_and_arguments_of_the_run(place: Place) -> None:
    await place.call("file_write", path="mine.py", content="WORD = 'grün'\n")
    outcome = await place.call(
        "code",
        language="python",
        source="import sys, mine\nprint(mine.WORD, sys.argv[1:])\nopen('made.txt', 'w').write('x')",
        args=["a b", "--c"],
    )
    assert outcome.exit_code == 0
    assert place.log.stdout == ["grün ['a b', '--c']"]
    assert await place.content("made.txt") == b"x"


async def test_a_traceback_shows_the_line_of_the_source(place: Place) -> None:
    outcome = await place.call("code", language="python", source="# ünï\r\n\r\nraise ValueError('no')\r\n")
    assert outcome.exit_code == 1
    assert any('main.py", line 3' in line for line in place.log.text)
    assert any("raise ValueError('no')" in line for line in place.log.text)
    assert [file.path for file in await place.workspace.list()] == []


async def test_bash_code_gets_its_arguments(place: Place) -> None:
    outcome = await place.call("code", language="bash", source='echo "$#: $2"\nexit 7', args=["1", "z w"])
    assert (outcome.exit_code, place.log.stdout) == (7, ["2: z w"])


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
async def test_node_code_runs(place: Place) -> None:
    source = "console.log('grün', process.argv.slice(2))"
    outcome = await place.call("code", language="node", source=source, args=["a"])
    assert (outcome.exit_code, place.log.stdout) == (0, ["grün [ 'a' ]"])


async def test_a_missing_interpreter_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        interpreters, "_LANGUAGES", {"node": interpreters._Language(("no-such-node",), "main.js")}
    )
    failure = await place.failure("code", language="node", source="1")
    assert (failure.code, failure.retried) == (ErrorCode.START_FAILED, False)
    assert failure.message.startswith("no-such-node is not installed")


async def test_a_disk_that_takes_no_source_is_a_resource_limit(place: Place) -> None:
    place.tmp = place.tmp / "folder"
    place.tmp.parent.write_text("a file in the folder's place")
    failure = await place.failure("code", language="bash", source="true")
    assert failure.code is ErrorCode.RESOURCE_LIMIT


async def test_the_runs_environment_reaches_its_programs(tmp_path: Path) -> None:
    async with open_place(tmp_path, {"env": {"GREETING": "hällo", "PYTHONPATH": "/nowhere"}}) as place:
        await place.call("shell", command="echo $GREETING")
        await place.call("code", language="python", source="import os; print(os.environ['PYTHONPATH'])")
        assert place.log.stdout == ["hällo", "/nowhere"]


async def test_what_is_no_file_of_a_workspace_is_told(place: Place) -> None:
    await place.call("shell", command="for n in 1 2 3 4 5 6; do mkfifo fifo$n; done; echo > real")
    [(level, note)] = place.log.said
    assert level is Level.WARNING
    assert note.endswith("'fifo1', 'fifo2', 'fifo3', 'fifo4', 'fifo5' and 1 more")
    assert [file.path for file in await place.workspace.list()] == ["real"]


async def test_files_over_the_limit_fail_the_step_that_wrote_them(place: Place) -> None:
    failure = await place.failure("shell", command="head -c 100001 /dev/zero > big")
    assert (failure.code, failure.retried) == (ErrorCode.RESOURCE_LIMIT, False)


async def test_a_program_is_stopped_and_its_files_are_kept(place: Place) -> None:
    call = asyncio.create_task(
        place.call("code", language="bash", source="echo partial > out.txt\necho ready\nsleep 100"),
    )
    await place.log.printed("ready")
    place.stop.stop(StopReason.CANCEL)
    outcome = await call
    assert outcome.stopped is StopReason.CANCEL
    assert [file.path for file in outcome.files] == ["out.txt"]


async def test_a_program_is_stopped_at_its_own_timeout(place: Place) -> None:
    outcome = await place.call("shell", timeout_s=0.2, command="sleep 100")
    assert outcome.stopped is StopReason.TIMEOUT


async def test_a_lost_run_ends_its_program(place: Place) -> None:
    call = asyncio.create_task(place.call("shell", command="echo ready; sleep 100"))
    await place.log.printed("ready")
    place.stop.stop(StopReason.LOST)
    with pytest.raises(LostOwnership):
        await call


async def test_a_cancelled_task_leaves_neither_program_nor_source(place: Place) -> None:
    call = asyncio.create_task(
        place.call("code", language="bash", source="echo $$ > pid; echo ready; exec sleep 100"),
    )
    await place.log.printed("ready")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    with pytest.raises(ProcessLookupError):
        os.kill(int(await place.content("pid")), 0)
    assert place.leftovers() == []
