"""What becomes of an entry, by its run's row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.core.models import Run, RunKind, RunStatus
from app.runs.take_over import Verdict, alone_from, judge, redelivered

NOW = 1_000_000_000
QUEUED = Run(
    run_id="r",
    user_id="u",
    kind=RunKind.STEPS,
    status=RunStatus.QUEUED,
    spec={},
    created_at=0,
)
RUNNING = replace(QUEUED, status=RunStatus.RUNNING, attempt=1, worker_id="other")
ENDED = [status for status in RunStatus if status.terminal]


def verdict(run: Run | None, *, in_flight: bool = False, owner_alive: bool = False) -> Verdict:
    return judge(run, now=NOW, me="me", in_flight=in_flight, owner_alive=owner_alive, max_redeliveries=3)


def test_an_unknown_run_is_a_dead_letter() -> None:
    assert verdict(None) is Verdict.UNKNOWN


@pytest.mark.parametrize("status", ENDED)
def test_an_ended_run_is_dropped(status: RunStatus) -> None:
    assert verdict(replace(QUEUED, status=status)) is Verdict.DROP


@pytest.mark.parametrize("status", [RunStatus.CREATED, RunStatus.QUEUED])
def test_a_waiting_run_is_taken(status: RunStatus) -> None:
    """A held run too: an entry pushed by hand starts it."""
    assert verdict(replace(QUEUED, status=status)) is Verdict.TAKE


@pytest.mark.parametrize(("due", "expected"), [(NOW + 1, Verdict.DELAY), (NOW, Verdict.TAKE)])
def test_a_run_is_not_taken_before_it_is_due(due: int, expected: Verdict) -> None:
    assert verdict(replace(QUEUED, next_attempt_at=due)) is expected


def test_a_run_of_a_live_worker_is_dropped() -> None:
    assert verdict(RUNNING, owner_alive=True) is Verdict.DROP


def test_a_run_of_a_dead_worker_is_taken() -> None:
    assert verdict(RUNNING) is Verdict.TAKE


def test_a_run_of_mine_is_dropped_while_it_is_in_flight_and_taken_when_it_is_not() -> None:
    mine = replace(RUNNING, worker_id="me")
    assert verdict(mine, in_flight=True, owner_alive=True) is Verdict.DROP
    assert verdict(mine, owner_alive=True) is Verdict.TAKE


def test_a_run_that_was_redelivered_too_often_is_poison() -> None:
    assert verdict(replace(RUNNING, redeliveries=2)) is Verdict.TAKE
    assert verdict(replace(RUNNING, redeliveries=3)) is Verdict.POISON


@pytest.mark.parametrize("run", [QUEUED, RUNNING, replace(RUNNING, redeliveries=9)])
def test_a_cancel_request_goes_before_everything_but_a_live_owner(run: Run) -> None:
    assert verdict(replace(run, cancel_requested_at=1)) is Verdict.CANCEL
    if run.status is RunStatus.RUNNING:
        assert verdict(replace(run, cancel_requested_at=1), owner_alive=True) is Verdict.DROP


@pytest.mark.parametrize(("most", "alone"), [(0, 1), (1, 1), (2, 1), (3, 2), (100, 99)])
def test_the_last_two_redeliveries_run_alone(most: int, alone: int) -> None:
    assert alone_from(most) == alone
    assert redelivered(replace(RUNNING, redeliveries=1)) == 2
    assert redelivered(replace(QUEUED, redeliveries=1)) == 1
