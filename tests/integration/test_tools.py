"""The tools on real files and real programs of this machine, and whole runs made of them."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from recorder import Recorder

from app.agent.planner import NO_MODEL, plan
from app.agent.supervisor import Drained, supervise
from app.agent.tools import code, program
from app.agent.tools.router import ToolRouter
from app.catalogue import argv_step, parse_steps
from app.errors import ErrorCode, LostOwnership, NotFound, RunFailure, StorageError
from app.execution.executor import StopReason, StopToken
from app.execution.process import LocalExecutor
from app.models import EventType, Level, Run, RunKind, RunStatus, Step, StepStatus, Stream
from app.storage.local_workspace import LocalWorkspaces
from app.storage.workspace import Limits, Workspace


class Place:
    """One run's workspace, executor, log and router."""

    def __init__(self, folder: Path, spec: dict[str, Any] | None = None) -> None:
        self.tmp = folder / "tmp"
        self.workspaces = LocalWorkspaces(folder / "workspace", Limits(100_000, 150_000, 20))
        self.executor = LocalExecutor(tmp_dir=self.tmp, silence_s=60, grace_s=1)
        self.log = Recorder()
        self.stop = StopToken()
        self.run = Run("r1", "u1", RunKind.STEPS, RunStatus.RUNNING, spec or {}, 0, attempt=1)
        self.workspace: Workspace = self.workspaces.open("u1", "r1")

    @property
    def router(self) -> ToolRouter:
        return ToolRouter(self.workspace, self.executor, self.run, self.log, tmp_dir=self.tmp)

    async def call(self, tool: str, timeout_s: float | None = None, **args: Any) -> program.ToolOutcome:
        """Run one step as the API would have accepted it."""
        [step] = parse_steps([{"tool": tool, "args": args, "timeout_s": timeout_s}])
        return await self.call_step(step)

    async def call_step(self, step: Step) -> program.ToolOutcome:
        return await self.router.call(step, self.stop)

    async def failure(self, tool: str, **args: Any) -> RunFailure:
        with pytest.raises(RunFailure) as failed:
            await self.call(tool, **args)
        return failed.value

    async def go(self) -> int | None:
        return await supervise(
            self.run,
            plan(self.run),
            done={},
            log=self.log,
            tools=self.router,
            stop=self.stop,
            clock=lambda: time.time_ns() // 1000,
        )

    async def content(self, path: str) -> bytes:
        return b"".join([piece async for piece in self.workspace.read(path)])

    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.tmp.iterdir()) if self.tmp.exists() else []


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    """A run's place; nothing may be left in the temporary folder at the end."""
    place = Place(tmp_path)
    yield place
    await place.executor.close()
    await place.workspaces.close()
    assert place.leftovers() == []


# -- files ----------------------------------------------------------------------------


async def test_a_file_is_written_read_listed_and_deleted(place: Place) -> None:
    written = await place.call("file_write", path="docs/ü.txt", content="grün\r\nblau\n\nrot")
    assert written.result == {"path": "docs/ü.txt", "size": 16}
    assert [file.path for file in written.files] == ["docs/ü.txt"]
    read = await place.call("file_read", path="docs/ü.txt")
    assert read.result == {"path": "docs/ü.txt", "size": 16, "encoding": "utf-8"}
    assert place.log.stdout == ["grün", "blau", "", "rot"]
    listed = await place.call("file_list", prefix="docs/")
    assert listed.result == {"files": 1, "size": 16}
    assert place.log.text[-1].split() == ["16", "docs/ü.txt"]
    assert (await place.call("file_delete", path="docs/ü.txt")).files == ()
    assert (await place.call("file_list")).result == {"files": 0, "size": 0}


async def test_bytes_go_in_and_come_out_in_base64(place: Place) -> None:
    content = bytes(range(256))
    await place.call(
        "file_write",
        path="b.bin",
        content=base64.b64encode(content).decode(),
        encoding="base64",
    )
    assert await place.content("b.bin") == content
    read = await place.call("file_read", path="b.bin")
    assert read.result == {"path": "b.bin", "size": 256, "encoding": "base64"}
    assert "".join(place.log.text) == base64.b64encode(content).decode()
    assert max(map(len, place.log.text)) == 76


async def test_a_long_file_is_shown_up_to_its_64_kilobytes(place: Place) -> None:
    """The cut goes through a character, and the file is still a text."""
    await place.workspace.write("long.txt", ("x" + "ü" * 40_000).encode())
    await place.call("file_read", path="long.txt")
    assert place.log.text == ["x" + "ü" * 32_767]
    note = "long.txt: 65536 of 80001 bytes are shown; download the file for the rest"
    assert place.log.said == [(Level.INFO, note)]


async def test_an_empty_file_prints_nothing(place: Place) -> None:
    await place.call("file_write", path="empty", content="")
    await place.call("file_read", path="empty")
    assert place.log.text == []


async def test_a_missing_file_fails_the_step_for_good(place: Place) -> None:
    for tool in ("file_read", "file_delete"):
        failure = await place.failure(tool, path="nowhere.txt")
        assert (failure.code, failure.exit_code, failure.retried) == (ErrorCode.EXIT_NONZERO, 1, False)
        assert "nowhere.txt" in failure.message


async def test_a_path_that_only_the_store_refuses_is_an_invalid_plan(place: Place) -> None:
    failure = await place.failure("file_write", path="x" * 300, content="")
    assert failure.code is ErrorCode.INVALID_PLAN


async def test_a_file_over_the_limit_is_a_resource_limit_that_no_retry_mends(place: Place) -> None:
    failure = await place.failure("file_write", path="big", content="x" * 100_001)
    assert (failure.code, failure.retried) == (ErrorCode.RESOURCE_LIMIT, False)
    assert (await place.call("file_list")).result == {"files": 0, "size": 0}


class _Hanging:
    """A store that does not answer; remembers that it was let go of."""

    def __init__(self) -> None:
        self.called, self.released = asyncio.Event(), False

    async def stat(self, path: str) -> None:
        self.called.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.released = True


async def test_a_file_tool_is_stopped_while_the_store_hangs(place: Place) -> None:
    store: Any = _Hanging()
    place.workspace = store
    call = asyncio.create_task(place.call("file_read", path="a"))
    await store.called.wait()
    place.stop.stop(StopReason.CANCEL)
    assert (await call).stopped is StopReason.CANCEL
    assert store.released


async def test_a_file_tool_obeys_its_own_timeout(place: Place) -> None:
    store: Any = _Hanging()
    place.workspace = store
    assert (await place.call("file_read", timeout_s=0.01, path="a")).stopped is StopReason.TIMEOUT
    assert store.released


async def test_a_cancelled_file_tool_leaves_no_task(place: Place) -> None:
    store: Any = _Hanging()
    place.workspace = store
    before = asyncio.all_tasks()
    call = asyncio.create_task(place.call("file_read", path="a"))
    await store.called.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert store.released
    assert asyncio.all_tasks() == before


async def test_a_store_that_is_away_is_tried_again(place: Place) -> None:
    class Away:
        async def stat(self, path: str) -> None:
            raise StorageError("connection refused")

    store: Any = Away()
    place.workspace = store
    failure = await place.failure("file_read", path="a")
    assert (failure.code, failure.retried) == (ErrorCode.EXECUTOR_UNAVAILABLE, True)


# -- programs -------------------------------------------------------------------------


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
    monkeypatch.setattr(program.Bench, "finds", lambda _, name: name != "bash")
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
    monkeypatch.setattr(code, "_LANGUAGES", {"node": code._Language(("no-such-node",), "main.js")})
    failure = await place.failure("code", language="node", source="1")
    assert (failure.code, failure.retried) == (ErrorCode.START_FAILED, False)
    assert failure.message.startswith("no-such-node is not installed")


async def test_a_disk_that_takes_no_source_is_a_resource_limit(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.tmp.write_text("a file in the folder's place")
    failure = await place.failure("code", language="bash", source="true")
    assert failure.code is ErrorCode.RESOURCE_LIMIT
    await place.workspaces.close()


async def test_the_runs_environment_reaches_its_programs(tmp_path: Path) -> None:
    place = Place(tmp_path, {"env": {"GREETING": "hällo", "PYTHONPATH": "/nowhere"}})
    await place.call("shell", command="echo $GREETING")
    await place.call("code", language="python", source="import os; print(os.environ['PYTHONPATH'])")
    assert place.log.stdout == ["hällo", "/nowhere"]
    await place.executor.close()
    await place.workspaces.close()


async def test_what_is_no_file_of_a_workspace_is_told(place: Place) -> None:
    await place.call("shell", command="for n in 1 2 3 4 5 6; do ln -s /etc/passwd link$n; done; echo > real")
    [(level, note)] = place.log.said
    assert level is Level.WARNING
    assert note.endswith("'link1', 'link2', 'link3', 'link4', 'link5' and 1 more")
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


# -- whole runs -----------------------------------------------------------------------


async def test_a_smoke_run_warns_first_and_succeeds(place: Place) -> None:
    place.run.spec["prompt"] = "Schreibe ein Gedicht über Bäume\r\n"
    assert await place.go() == 0
    assert place.log.trace[0] == ("say", (None, Level.WARNING, NO_MODEL))
    assert await place.content("prompt.txt") == "Schreibe ein Gedicht über Bäume\r\n".encode()
    assert "prompt: 35 bytes in prompt.txt" in place.log.text
    assert {record.status for record in place.log.records.values()} == {StepStatus.SUCCEEDED}


async def test_a_fenced_run_with_a_tolerated_failure_succeeds(place: Place) -> None:
    place.run.spec["prompt"] = """Please:
```yaml
- tool: file_write
  args: {path: words.txt, content: "eins zwei drei"}
- id: oops
  tool: file_read
  args: {path: nowhere.txt}
  continue_on_error: true
- tool: shell
  args:
    command: |
      wc -w < words.txt | tee count.txt
```
"""
    assert await place.go() == 0
    statuses = {step_id: record.status for step_id, record in place.log.records.items()}
    assert statuses == {
        "s1": StepStatus.SUCCEEDED,
        "oops": StepStatus.FAILED,
        "s3": StepStatus.SUCCEEDED,
    }
    artifacts = [data["path"] for _, _, _, data in place.log.of(EventType.ARTIFACT)]
    assert artifacts == ["words.txt", "count.txt"]


async def test_a_run_that_is_drained_in_mid_step_goes_on_from_that_step(place: Place) -> None:
    """What the first attempt finished is not done twice."""
    place.run.spec["steps"] = [
        {"tool": "shell", "args": {"command": "echo once >> log.txt"}},
        {"tool": "shell", "args": {"command": "[ -e again ] || { touch again; echo ready; sleep 100; }"}},
    ]
    first = asyncio.create_task(place.go())
    await place.log.printed("ready")
    place.stop.stop(StopReason.DRAIN)
    with pytest.raises(Drained):
        await first
    place.stop, earlier = StopToken(), dict(place.log.records)
    exit_code = await supervise(
        place.run,
        plan(place.run),
        done=earlier,
        log=place.log,
        tools=place.router,
        stop=place.stop,
        clock=lambda: 0,
    )
    assert exit_code == 0
    assert await place.content("log.txt") == b"once\n"
    assert [text for _, text in place.log.said] == [
        "s1 succeeded in attempt 1: not run again",
        "s2 was interrupted in attempt 1: it starts again",
    ]


async def test_a_deleted_file_is_gone(place: Place) -> None:
    await place.call("file_write", path="a.txt", content="x")
    await place.call("file_delete", path="a.txt")
    with pytest.raises(NotFound):
        await place.workspace.stat("a.txt")
