"""The order of a run's steps, what is recorded of them, and what a later attempt makes of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from support.recording_log import Recorder

from app.agent.planner import Plan
from app.agent.supervisor import MAX_ARTIFACTS, Drained, supervise
from app.agent.tools.program import ToolOutcome
from app.agent.tools.router import ToolRouter
from app.core.errors import LostOwnership
from app.core.events import EventType
from app.core.models import Run, RunKind, RunStatus, Step, StepRecord, StepStatus
from app.execution.executor import Resume
from app.plan.steps import ARGV
from app.storage.workspace import FileInfo
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Level
from tailrun.process.stop import StopReason, StopToken, Usage

Answer = ToolOutcome | Exception | Callable[[StopToken], ToolOutcome]


class Tools:
    """Answers each call as it was told to; remembers which steps were called."""

    unsettled = False

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.called: list[str] = []

    def reattaches(self, step: Step) -> bool:
        return False

    async def call(self, step: Step, stop: StopToken, again: Resume | None = None) -> ToolOutcome:
        self.called.append(step.id)
        answer = self.answers.get(step.id, ToolOutcome(exit_code=0))
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, ToolOutcome) else answer(stop)


class Case:
    """A run of shell steps with pretended tools, and a clock that ticks 1 s a look."""

    def __init__(self, *steps: Step, attempt: int = 1, notes: list[tuple[Level, str]] | None = None) -> None:
        self.run = Run(
            run_id="r1",
            user_id="u1",
            kind=RunKind.STEPS,
            status=RunStatus.RUNNING,
            spec={},
            created_at=0,
            attempt=attempt,
            timeout_s=60,
        )
        self.plan = Plan(list(steps), "steps", notes or [])
        self.log = Recorder()
        self.stop = StopToken()
        self.tools = Tools()

    def make_tools(self, **answers: Answer) -> Tools:
        return Tools(**answers)

    async def go(self, *done: StepRecord, **answers: Answer) -> int | None:
        self.tools = self.make_tools(**answers)
        clock = itertools.count(1_000_000, 1_000_000)
        return await supervise(
            self.run,
            self.plan,
            done={record.step_id: record for record in done},
            log=self.log,
            tools=cast("ToolRouter", self.tools),
            stop=self.stop,
            clock=lambda: next(clock),
        )

    async def failure(self, *done: StepRecord, **answers: Answer) -> RunFailure:
        with pytest.raises(RunFailure) as failed:
            await self.go(*done, **answers)
        return failed.value


def shell(step_id: str, command: str = "true", **options: Any) -> Step:
    return Step(step_id, "shell", {"command": command}, **options)


def record(step_id: str, status: StepStatus, **more: Any) -> StepRecord:
    return StepRecord("r1", step_id, 0, "shell", {}, status, attempt=1, started_at=0, **more)


async def test_a_step_is_told_recorded_run_and_told_again() -> None:
    case = Case(shell("s1", "wc -l docs/*.md"))
    outcome = ToolOutcome(
        exit_code=0,
        result={"changed": 1, "removed": 1},
        usage=Usage(0.12345, 2, 4096),
        files=(FileInfo("out.txt", 3, 0), FileInfo("gone.txt", -1, 0)),
    )
    assert await case.go(s1=outcome) == 0
    running = {"tool": "shell", "status": "running", "n": 1, "of": 1}
    over = {"tool": "shell", "status": "succeeded", "exit_code": 0, "duration_s": 1.0}
    usage = {"cpu_s": 0.123, "wall_s": 2, "max_rss_bytes": 4096}
    assert case.log.trace == [
        (EventType.STEP, ("s1", Level.INFO, "▸ s1 shell: wc -l docs/*.md", running)),
        ("record", ("s1", StepStatus.RUNNING)),
        (EventType.ARTIFACT, ("s1", Level.INFO, None, {"path": "out.txt", "size": 3})),
        (EventType.USAGE, ("s1", None, None, usage)),
        ("record", ("s1", StepStatus.SUCCEEDED)),
        (EventType.STEP, ("s1", Level.INFO, "✓ s1 shell: done in 1.0 s", over)),
    ]
    assert case.log.records["s1"] == StepRecord(
        run_id="r1",
        step_id="s1",
        idx=0,
        tool="shell",
        args={"command": "wc -l docs/*.md"},
        status=StepStatus.SUCCEEDED,
        attempt=1,
        started_at=1_000_000,
        ended_at=2_000_000,
        exit_code=0,
        result={"changed": 1, "removed": 1},
    )


async def test_a_finished_step_is_committed_before_the_next_one_starts() -> None:
    """Not before the first one, and not after the last: the run's end commits that."""
    case = Case(shell("s1"), shell("s2"))
    await case.go()
    order = [name if name == "flush" else f"{entry[0]} {entry[1]}" for name, entry in case.log.trace]
    saved = [entry for entry in order if entry == "flush" or "succeeded" in entry or "running" in entry]
    assert saved == ["s1 running", "s1 succeeded", "flush", "s2 running", "s2 succeeded"]


async def test_the_plans_notes_come_first() -> None:
    case = Case(shell("s1"), notes=[(Level.WARNING, "no model"), (Level.INFO, "so")])
    await case.go()
    assert case.log.trace[:2] == [
        ("say", (None, Level.WARNING, "no model")),
        ("say", (None, Level.INFO, "so")),
    ]


async def test_a_failed_step_fails_the_run() -> None:
    case = Case(shell("s1"), shell("s2"))
    failure = await case.failure(s1=ToolOutcome(exit_code=3, files=(FileInfo("core", 1, 0),)))
    assert (failure.code, failure.step, failure.exit_code) == (ErrorCode.EXIT_NONZERO, "s1", 3)
    assert failure.message == "shell ended with exit code 3"
    assert case.tools.called == ["s1"]
    assert case.log.headings[-1] == "✗ s1 shell: shell ended with exit code 3 (after 1.0 s)"
    assert case.log.of(EventType.STEP)[-1][1] is Level.ERROR
    assert len(case.log.of(EventType.ARTIFACT)) == 1
    assert case.log.records["s1"].error == {
        "code": "exit_nonzero",
        "message": "shell ended with exit code 3",
        "retried": False,
        "tolerated": False,
    }


@pytest.mark.parametrize(
    ("program", "name"), [("/usr/bin/make", "make"), ("./run.sh", "run.sh"), ("/", "argv")]
)
async def test_the_program_of_an_argv_is_named(program: str, name: str) -> None:
    step = Step(id="s1", tool=ARGV, args={"argv": [program, "-k"]})
    failure = await Case(step).failure(s1=ToolOutcome(exit_code=2))
    assert failure.message == f"{name} ended with exit code 2"


async def test_a_signal_is_named() -> None:
    failure = await Case(shell("s1")).failure(s1=ToolOutcome(exit_code=137, signal=9))
    assert failure.message == "shell ended with exit code 137 (killed by SIGKILL)"


async def test_a_step_may_fail_when_it_says_so() -> None:
    case = Case(shell("s1", continue_on_error=True), shell("s2"))
    assert await case.go(s1=ToolOutcome(exit_code=3)) == 0
    assert case.tools.called == ["s1", "s2"]
    assert (case.log.records["s1"].status, case.log.records["s1"].exit_code) == (StepStatus.FAILED, 3)
    assert case.log.said == [(Level.WARNING, "s1 failed; it may, so the run continues")]
    assert case.log.of(EventType.STEP)[1][1] is Level.WARNING


async def test_a_tool_that_could_not_start_fails_its_step() -> None:
    case = Case(shell("s1"))
    failure = await case.failure(s1=RunFailure(ErrorCode.START_FAILED, "no such program", retried=False))
    assert (failure.code, failure.step, failure.retried) == (ErrorCode.START_FAILED, "s1", False)
    assert case.log.records["s1"].status is StepStatus.FAILED


async def test_a_store_that_is_away_is_never_tolerated() -> None:
    case = Case(shell("s1", continue_on_error=True))
    failure = await case.failure(s1=RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, "away"))
    assert failure.retried


async def test_finished_steps_are_not_run_again() -> None:
    case = Case(shell("s1"), shell("s2"), shell("s3", continue_on_error=True), shell("s4"), attempt=2)
    await case.go(
        record("s1", StepStatus.SUCCEEDED),
        record("s3", StepStatus.FAILED, error={"code": "exit_nonzero", "message": "", "tolerated": True}),
    )
    assert case.tools.called == ["s2", "s4"]
    assert case.log.said == [
        (Level.INFO, "s1 succeeded in attempt 1: not run again"),
        (Level.INFO, "s3 failed in attempt 1: not run again"),
    ]
    assert case.log.records["s2"].attempt == 2


async def test_an_interrupted_step_starts_again_and_says_so() -> None:
    case = Case(shell("s1"), attempt=2, notes=[(Level.INFO, "said by the first attempt")])
    await case.go(record("s1", StepStatus.RUNNING))
    assert case.tools.called == ["s1"]
    assert case.log.said == [(Level.WARNING, "s1 was interrupted in attempt 1: it starts again")]


async def test_a_step_whose_failure_is_retried_starts_again() -> None:
    case = Case(shell("s1"), attempt=2)
    error = {"code": "start_failed", "message": "no process", "retried": True, "tolerated": False}
    await case.go(record("s1", StepStatus.FAILED, error=error))
    assert case.tools.called == ["s1"]
    assert case.log.said == [(Level.WARNING, "s1 failed in attempt 1: it starts again")]


async def test_a_final_failure_stands_when_the_worker_died_before_the_runs_end() -> None:
    case = Case(shell("s1"), attempt=2)
    error = {"code": "exit_nonzero", "message": "exit 3", "retried": False, "tolerated": False}
    failure = await case.failure(record("s1", StepStatus.FAILED, exit_code=3, error=error))
    assert (failure.code, failure.message, failure.step, failure.exit_code, failure.retried) == (
        ErrorCode.EXIT_NONZERO,
        "exit 3",
        "s1",
        3,
        False,
    )
    assert case.tools.called == []


def stops(reason: StopReason, exit_code: int | None = 143) -> Callable[[StopToken], ToolOutcome]:
    """A tool in whose middle somebody asks the run to stop."""

    def answer(stop: StopToken) -> ToolOutcome:
        stop.stop(reason)
        return ToolOutcome(exit_code=exit_code, stopped=reason)

    return answer


@pytest.mark.parametrize(
    ("reason", "code", "status", "message"),
    [
        (StopReason.CANCEL, ErrorCode.CANCELLED, StepStatus.CANCELLED, "cancelled on request"),
        (StopReason.TIMEOUT, ErrorCode.TIMEOUT, StepStatus.TIMED_OUT, "stopped at the run's limit of 60 s"),
    ],
)
async def test_a_run_that_is_stopped_in_mid_step_ends(
    reason: StopReason,
    code: ErrorCode,
    status: StepStatus,
    message: str,
) -> None:
    """Also where the step may fail: it is the run that is over."""
    case = Case(shell("s1", continue_on_error=True, timeout_s=90), shell("s2"))
    failure = await case.failure(s1=stops(reason))
    assert (failure.code, failure.message) == (code, message)
    assert (failure.step, failure.exit_code) == ("s1", 143)
    assert case.log.records["s1"].status is status
    assert case.tools.called == ["s1"]


async def test_a_steps_own_time_is_not_the_runs() -> None:
    case = Case(shell("s1", timeout_s=2.5, continue_on_error=True), shell("s2", timeout_s=2.5))
    timed_out = ToolOutcome(exit_code=143, stopped=StopReason.TIMEOUT)
    failure = await case.failure(s1=timed_out, s2=timed_out)
    assert case.tools.called == ["s1", "s2"]
    assert case.log.records["s1"].status is StepStatus.TIMED_OUT
    assert (failure.code, failure.message, failure.step) == (
        ErrorCode.TIMEOUT,
        "stopped at its timeout_s of 2.5 s",
        "s2",
    )


async def test_a_drained_step_keeps_its_record_for_the_next_attempt() -> None:
    case = Case(shell("s1"), shell("s2"))
    with pytest.raises(Drained):
        await case.go(s1=stops(StopReason.DRAIN))
    assert case.log.records["s1"].status is StepStatus.RUNNING
    assert case.log.trace[-1] == ("record", ("s1", StepStatus.RUNNING))


async def test_a_lost_run_writes_nothing_more() -> None:
    case = Case(shell("s1"))
    with pytest.raises(LostOwnership):
        await case.go(s1=stops(StopReason.LOST))
    assert case.log.trace[-1] == ("record", ("s1", StepStatus.RUNNING))


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (StopReason.CANCEL, RunFailure),
        (StopReason.TIMEOUT, RunFailure),
        (StopReason.DRAIN, Drained),
        (StopReason.LOST, LostOwnership),
    ],
)
async def test_no_step_starts_once_the_run_is_to_stop(reason: StopReason, error: type[Exception]) -> None:
    """A step that ended by itself in the same moment keeps its own end."""

    def ends_just_then(stop: StopToken) -> ToolOutcome:
        stop.stop(reason)
        return ToolOutcome(exit_code=1)

    case = Case(shell("s1", continue_on_error=True), shell("s2"))
    with pytest.raises(error):
        await case.go(s1=ends_just_then)
    assert case.tools.called == ["s1"]
    assert case.log.records["s1"].status is StepStatus.FAILED


async def test_a_run_whose_last_step_ended_succeeds_although_it_was_to_be_cancelled() -> None:
    def ends_just_then(stop: StopToken) -> ToolOutcome:
        stop.stop(StopReason.CANCEL)
        return ToolOutcome(exit_code=0)

    assert await Case(shell("s1")).go(s1=ends_just_then) == 0


async def test_artifact_events_of_a_step_are_bounded() -> None:
    case = Case(shell("s1"))
    files = tuple(FileInfo(f"f{n}", n, 0) for n in range(MAX_ARTIFACTS + 7))
    await case.go(s1=ToolOutcome(exit_code=0, files=files))
    assert len(case.log.of(EventType.ARTIFACT)) == MAX_ARTIFACTS
    assert case.log.said == [(Level.INFO, "7 more files were written")]


@pytest.mark.parametrize(
    ("step", "heading"),
    [
        (shell("s1", "ls\n"), "▸ s1 shell: ls"),
        (shell("s1", "\n  echo ünï\nls"), "▸ s1 shell: echo ünï …"),
        (shell("s1", " \n"), "▸ s1 shell: (nothing)"),
        (shell("s1", "x" * 500), "▸ s1 shell: " + "x" * 107 + "…"),
        (
            Step("s1", "code", {"language": "python", "source": "import os\r\nprint()", "args": []}),
            "▸ s1 code: python: import os …",
        ),
        (Step("s1", "argv", {"argv": ["echo", "a b"]}), "▸ s1 argv: echo 'a b'"),
        (Step("s1", "file_write", {"path": "ü.txt", "content": "x"}), "▸ s1 file_write: ü.txt"),
        (Step("s1", "file_list", {"prefix": ""}), "▸ s1 file_list: all files"),
        (Step("s1", "file_list", {"prefix": "docs/"}), "▸ s1 file_list: docs/"),
    ],
)
async def test_a_heading_says_in_one_short_line_what_is_done(step: Step, heading: str) -> None:
    case = Case(step)
    await case.go()
    assert case.log.headings[0] == heading
    assert len(heading) <= 120


@pytest.mark.parametrize(
    ("retry_on", "again"), [(None, False), (["exit_nonzero"], True), (["timeout"], False)]
)
async def test_the_run_says_whether_a_failed_step_starts_again(
    retry_on: list[str] | None,
    again: bool,
) -> None:
    """What `retry_on` lists stands in the record, and the next attempt reads it there."""
    first = Case(shell("s1"))
    first.run = replace(first.run, retry_on=retry_on)
    await first.failure(s1=ToolOutcome(exit_code=3))
    second = Case(shell("s1"), attempt=2)
    second.run = replace(second.run, retry_on=retry_on)
    if again:
        assert await second.go(first.log.records["s1"]) == 0
    else:
        failure = await second.failure(first.log.records["s1"])
        assert (failure.code, failure.exit_code) == (ErrorCode.EXIT_NONZERO, 3)
        assert not failure.retried_by(retry_on)
    assert second.tools.called == (["s1"] if again else [])
