"""How an attempt's end becomes the run's next state."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.models import Run, RunKind, RunStatus
from app.core.periodic import Backoff
from app.worker.job_processor import dead_reason, failed
from tailrun.process.errors import ErrorCode, RunFailure

RUN = Run(
    run_id="r",
    user_id="u",
    kind=RunKind.STEPS,
    status=RunStatus.RUNNING,
    spec={},
    created_at=0,
    max_attempts=3,
)
NOW = 1_000_000
BACKOFF = Backoff(1, 60, Random(1))
FINAL = {ErrorCode.EXIT_NONZERO, ErrorCode.TIMEOUT, ErrorCode.INVALID_PLAN, ErrorCode.CANCELLED}
FINAL |= {ErrorCode.OOM_KILLED, ErrorCode.NO_MODEL, ErrorCode.MODEL_REJECTED, ErrorCode.MODEL_BAD_REPLY}
FINAL |= {ErrorCode.CONTEXT_OVERFLOW, ErrorCode.BUDGET, ErrorCode.STUCK_LOOP, ErrorCode.APPROVAL_EXPIRED}
FINAL |= {ErrorCode.INVALID_RESULT, ErrorCode.REPLAY_DIVERGED}


@pytest.mark.parametrize("code", list(ErrorCode))
def test_each_code_knows_whether_it_is_retried(code: ErrorCode) -> None:
    outcome = failed(RUN, RunFailure(code, "x"), NOW, BACKOFF)
    assert (outcome.status is RunStatus.QUEUED) == (code not in FINAL)
    assert outcome.counts_retry == (code not in FINAL)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.EXIT_NONZERO, RunStatus.FAILED),
        (ErrorCode.TIMEOUT, RunStatus.TIMED_OUT),
        (ErrorCode.CANCELLED, RunStatus.CANCELLED),
        (ErrorCode.INVALID_PLAN, RunStatus.FAILED),
    ],
)
def test_final_codes_end_the_run(code: ErrorCode, status: RunStatus) -> None:
    failure = RunFailure(code, "x", step="s1", exit_code=7)
    outcome = failed(RUN, failure, NOW, BACKOFF)
    assert (outcome.status, outcome.exit_code) == (status, 7)
    assert outcome.error == {"code": code, "message": "x", "step": "s1"}
    assert dead_reason(RUN, failure, outcome) is None


def test_the_last_try_fails_and_leaves_a_dead_letter() -> None:
    """`max_attempts` is 1 + retries."""
    failure = RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, "x")
    assert failed(replace(RUN, retries=1), failure, NOW, BACKOFF).status is RunStatus.QUEUED
    last = failed(replace(RUN, retries=2), failure, NOW, BACKOFF)
    assert last.status is RunStatus.FAILED
    assert dead_reason(RUN, failure, last) == "retries_exhausted"


def test_poison_leaves_a_dead_letter() -> None:
    failure = RunFailure(ErrorCode.WORKER_LOST, "x", retried=False)
    assert dead_reason(RUN, failure, failed(RUN, failure, NOW, BACKOFF)) == "poison"


def test_a_failure_can_say_that_trying_again_is_useless() -> None:
    failure = RunFailure(ErrorCode.START_FAILED, "no such program", retried=False)
    assert failed(RUN, failure, NOW, BACKOFF).status is RunStatus.FAILED


@pytest.mark.parametrize("code", list(ErrorCode))
def test_a_run_says_itself_what_is_retried(code: ErrorCode) -> None:
    """Exactly the codes that it lists; but never a cancel."""
    run = replace(RUN, retry_on=["exit_nonzero", "timeout", "cancelled"])
    listed = code in {ErrorCode.EXIT_NONZERO, ErrorCode.TIMEOUT}
    failure = RunFailure(code, "x")
    assert (failed(run, failure, NOW, BACKOFF).status is RunStatus.QUEUED) == listed
    assert failed(replace(RUN, retry_on=[]), failure, NOW, BACKOFF).status is not RunStatus.QUEUED


def test_a_run_cannot_ask_for_the_useless() -> None:
    """A missing program stays missing, and poison stays poison."""
    run = replace(RUN, retry_on=["start_failed", "worker_lost"])
    for code in (ErrorCode.START_FAILED, ErrorCode.WORKER_LOST):
        assert failed(run, RunFailure(code, "x", retried=False), NOW, BACKOFF).status is RunStatus.FAILED


@pytest.mark.parametrize(
    ("code", "status"),
    [(ErrorCode.EXIT_NONZERO, RunStatus.FAILED), (ErrorCode.TIMEOUT, RunStatus.TIMED_OUT)],
)
def test_listed_codes_leave_a_dead_letter_in_the_end(code: ErrorCode, status: RunStatus) -> None:
    """Whatever the run's state says of the last failure."""
    run, failure = replace(RUN, retry_on=[code], retries=2), RunFailure(code, "x")
    last = failed(run, failure, NOW, BACKOFF)
    assert last.status is status
    assert dead_reason(run, failure, last) == "retries_exhausted"


@given(retries=st.integers(0, 1000), seed=st.integers(0, 100))
def test_backoff_stays_below_its_ceiling(retries: int, seed: int) -> None:
    delay = Backoff(2, 60, Random(seed)).delay_us(retries)
    assert 0 <= delay <= min(60, 2 * 2**retries) * 1_000_000
