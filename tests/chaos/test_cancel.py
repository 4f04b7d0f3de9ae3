"""Cancel from every state: bounded, silent and stubborn programs too, and nothing is left."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stack import Stack, processes_with, seqs, shell, wait_for

GRACE_S = 5
LONG_BACKOFF = {"RETRY_BASE_S": "1000000", "RETRY_MAX_S": "1000000"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("cancel")
    stack = Stack(folder, f"sqlite:///{folder / 'tailrun.db'}", WORKER_CONCURRENCY="2", **LONG_BACKOFF)
    yield stack
    stack.close()


def cancel_and_time(stack: Stack, run_id: str) -> float:
    started = time.monotonic()
    assert stack.cancel(run_id).status_code == 200
    run = stack.wait_end(run_id)
    assert (run["status"], run["error"]["code"]) == ("cancelled", "cancelled")
    return time.monotonic() - started


def test_a_silent_program_is_gone_within_a_second(stack: Stack, slack: float) -> None:
    """With its grandchildren, and although it never prints."""
    run_id = stack.submit(shell("sleep 41001 & (setsid sleep 41002 &); echo up; sleep 41003"))
    watcher = stack.watch(run_id)
    watcher.wait_line("up")
    assert cancel_and_time(stack, run_id) < 2 * slack
    assert not processes_with("sleep\x004100")
    events = watcher.finish()
    assert events[-1]["status"] == "cancelled"
    assert seqs(events) == list(range(1, len(events) + 1))


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace(stack: Stack, slack: float) -> None:
    run_id = stack.submit(shell("trap '' TERM; echo up; while true; do sleep 0.1; done"))
    stack.watch(run_id).wait_line("up")
    assert GRACE_S <= cancel_and_time(stack, run_id) < GRACE_S + 5 * slack


def test_a_held_run_is_cancelled_at_once(stack: Stack) -> None:
    run_id = stack.submit(shell("echo never"), start=False)
    assert stack.cancel(run_id).json()["status"] == "cancelled"
    assert stack.http.post(f"/v1/runs/{run_id}/start").status_code == 409


def test_a_queued_run_never_starts(stack: Stack) -> None:
    blockers = [stack.submit(shell("sleep 3000")) for _ in range(2)]
    wait_for(lambda: all(stack.run(b)["status"] == "running" for b in blockers), "the slots to be taken")
    run_id = stack.submit(shell("echo never"))
    assert stack.cancel(run_id).json()["status"] == "cancelled"
    for blocker in blockers:
        stack.cancel(blocker)
        stack.wait_end(blocker)
    with stack.redis.client() as client:
        wait_for(lambda: client.llen("jobs:pending") == 0, "the entry to be dropped")
    assert "never" not in [event.get("content") for event in stack.events(run_id)]
    assert stack.run(run_id)["started_at"] is None


def test_a_run_between_attempts_is_cancelled_at_once(stack: Stack) -> None:
    """Its tool's guard dies, which is tried again after a wait; the wait is cut short."""
    run_id = stack.submit(shell("kill -9 $PPID; sleep 3000"), max_attempts=10)
    wait_for(lambda: stack.run(run_id)["next_attempt_at"] is not None, "the first failure")
    assert stack.run(run_id)["error"]["code"] == "executor_unavailable"
    assert stack.cancel(run_id).json()["status"] == "cancelled"
    assert stack.run(run_id)["ended_at"] is not None


def test_a_finished_run_stays_as_it_is(stack: Stack) -> None:
    run_id = stack.submit(shell("echo done"))
    before = stack.wait_end(run_id)
    answer = stack.cancel(run_id)
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert stack.run(run_id) == before


def test_a_cancel_whose_signal_is_lost_is_read_from_the_row(stack: Stack, slack: float) -> None:
    """The worker's subscription is dead while the signal is sent."""
    run_id = stack.submit(shell("echo up; sleep 6000"))
    stack.watch(run_id).wait_line("up")
    with stack.redis.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    assert cancel_and_time(stack, run_id) < 6 * slack


def test_a_time_limit_ends_the_run_as_timed_out(stack: Stack) -> None:
    run_id = stack.submit(shell("echo up; sleep 4107"), timeout_s=1)
    run = stack.wait_end(run_id)
    assert (run["status"], run["error"]["code"], run["attempt"]) == ("timed_out", "timeout", 1)
    assert not processes_with("sleep\x004107\x00")


def test_an_orphan_is_cancelled_without_any_worker(tmp_path: Path, sqlite_url: str) -> None:
    """Its only worker is dead and no other comes: the API ends the run once the lease is dead."""
    stack = Stack(tmp_path, sqlite_url, LEASE_S="4")
    try:
        run_id = stack.submit(shell("for i in $(seq 1 1000); do echo $i; sleep 0.05; done"))
        watcher = stack.watch(run_id)
        watcher.wait_line("10")
        stack.workers[0].kill()
        with stack.redis.client() as client:
            worker = client.zrange("jobs:workers", 0, 0)[0]
            wait_for(lambda: client.zscore("jobs:workers", worker) < time.time() * 1000, "the lease to die")
        stack.cancel(run_id)
        run = stack.wait_end(run_id)
        assert run["status"] == "cancelled"
        assert seqs(watcher.finish()) == list(range(1, run["last_seq"] + 1))
        assert watcher.events == stack.events(run_id)
    finally:
        stack.close()


def test_a_cancel_reaches_a_frozen_worker_when_it_thaws(tmp_path: Path, sqlite_url: str) -> None:
    stack = Stack(tmp_path, sqlite_url, workers=2)
    try:
        run_id = stack.submit(shell("echo up; sleep 6000"))
        stack.watch(run_id).wait_line("up")
        frozen = stack.owner(run_id)
        frozen.signal(signal.SIGSTOP)
        stack.cancel(run_id)
        assert stack.wait_end(run_id)["status"] == "cancelled"
        frozen.signal(signal.SIGCONT)
        wait_for(lambda: "run lost" in frozen.log.read_text(), "the frozen worker to notice")
        assert stack.run(run_id)["status"] == "cancelled"
    finally:
        stack.close()
