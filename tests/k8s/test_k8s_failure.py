"""The failure table, row by row."""

from __future__ import annotations

import pytest
from pod_statuses import OOM, RUNNING, STATUSES, condition, disrupted, ended, pod

from app.k8s.pod_state import PodVerdict, State, finished, judge, silent_node
from app.k8s.spec import SYNC, TOOL
from tailrun.process.errors import ErrorCode


@pytest.mark.parametrize("what", STATUSES)
def test_a_status_means(what: str) -> None:
    """State, error code, and whether another attempt could mend it."""
    seen, (state, code, final) = STATUSES[what]
    verdict = judge(
        seen.get("job"), seen["pod"], seen.get("events", ()), pod_gone=seen.get("pod_gone", False)
    )
    assert (verdict.state, verdict.code, verdict.final) == (state, code, final), verdict.why
    assert (verdict.why == "") is (state in {State.RUNNING, State.ENDED})


def test_the_exit_code_is_the_containers() -> None:
    verdict = judge(None, pod(ended(42)), ())
    assert (verdict.state, verdict.exit_code) == (State.ENDED, 42)


def test_a_failure_says_what_the_pod_says_and_whether_to_try_again() -> None:
    failure = judge(None, pod(OOM), ()).failure()
    assert (failure.code, failure.exit_code, failure.retried) == (ErrorCode.OOM_KILLED, 137, False)
    assert failure.retried_by(["oom_killed"])
    final = PodVerdict(State.FAILED, ErrorCode.IMAGE_PULL, "no such image", final=True).failure()
    assert (final.message, final.retried) == ("no such image", False)


def test_each_container_is_looked_at_by_itself() -> None:
    assert finished(pod(ended(0)), TOOL)
    assert not finished(pod(ended(0)), SYNC)
    assert not finished(None, SYNC)


@pytest.mark.parametrize(
    ("seen", "away"),
    [
        (pod(RUNNING, conditions=[disrupted("DeletionByTaintManager")]), True),
        (pod(RUNNING, conditions=[disrupted("DeletionByPodGC")]), True),
        (pod(RUNNING, conditions=[disrupted("PreemptionByScheduler")]), True),
        (pod(RUNNING, reason="NodeLost"), True),
        (pod(RUNNING, phase="Unknown"), True),
        (pod(RUNNING, phase="Failed", reason="NodeShutdown"), True),
        (pod(RUNNING, phase="Failed", reason="Evicted"), False),  # for what it used itself, perhaps
        (pod(OOM), False),
    ],
)
def test_a_node_that_was_lost_is_not_the_programs_fault(seen: dict[str, object], away: bool) -> None:
    verdict = judge(None, seen, ())
    assert (verdict.state, verdict.failure().away) == (State.FAILED, away)


@pytest.mark.parametrize(
    ("seen", "node"),
    [
        (pod(RUNNING, phase="Running", conditions=[condition("Ready", "False")]), "node1"),
        (pod(RUNNING, phase="Running", conditions=[condition("Ready", "Unknown")]), "node1"),
        (pod(RUNNING, phase="Running", conditions=[condition("Ready", "True")]), ""),
        (pod(RUNNING, phase="Running", conditions=[condition("Ready", "False", "ContainersNotReady")]), ""),
        (pod(ended(0), phase="Running", conditions=[condition("Ready", "False")]), ""),
        (pod(RUNNING, phase="Running"), ""),
        (None, ""),
    ],
)
def test_a_node_that_does_not_answer_is_seen_on_its_pods(seen: dict[str, object] | None, node: str) -> None:
    assert silent_node(seen) == node
