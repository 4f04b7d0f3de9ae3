"""A worker is killed, frozen or drained in the middle of a run; nothing is lost, nothing runs twice."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stack import Stack, processes_with, seqs, shell, wait_for

COUNT = 'for i in $(seq 1 {n}); do echo "{name} $i"; sleep {pause}; done'


@pytest.fixture
def stack(tmp_path: Path, database_url: str) -> Iterator[Stack]:
    stack = Stack(tmp_path, database_url, workers=2, DRAIN_S="0.5")
    yield stack
    stack.close()


def counting(name: str, n: int, pause: float) -> dict[str, object]:
    return shell(COUNT.format(name=name, n=n, pause=pause))


def test_a_run_survives_kill_9_of_its_worker(stack: Stack) -> None:
    """The finished step stands, the interrupted one starts again elsewhere, watchers miss nothing."""
    run_id = stack.submit(shell("echo once >> done.txt; echo first"), counting("tick", 30, 0.1))
    early = stack.watch(run_id)
    early.wait_line("tick 5")
    stack.owner(run_id).kill()
    run = stack.wait_end(run_id)
    assert (run["status"], run["attempt"], run["redeliveries"]) == ("succeeded", 2, 1)
    assert seqs(early.finish()) == list(range(1, run["last_seq"] + 1))
    assert early.events == stack.events(run_id), "what was seen live is what is stored"
    assert early.lines().count("first") == 1, "a finished step is not run again"
    assert stack.http.get(f"/v1/runs/{run_id}/files/done.txt").text == "once\n"
    second = [e["content"] for e in early.events if e["type"] == "log" and e["attempt"] == 2]
    assert [line for line in second if line.startswith("tick")] == [f"tick {i}" for i in range(1, 31)]


def test_redelivery_takes_no_longer_than_six_seconds(stack: Stack, slack: float) -> None:
    run_id = stack.submit(counting("tick", 100, 0.05))
    watcher = stack.watch(run_id)
    watcher.wait_line("tick 3")
    stack.owner(run_id).kill()
    wait_for(lambda: stack.run(run_id)["attempt"] == 2, "the second attempt", 7 * slack)
    stack.cancel(run_id)
    watcher.finish()


def test_no_program_outlives_its_killed_worker(stack: Stack) -> None:
    """Grandchildren in sessions of their own included."""
    run_id = stack.submit(shell("setsid sleep 31337 & (setsid sleep 31338 &) ; echo up; sleep 31339"))
    stack.watch(run_id).wait_line("up")
    assert len(processes_with("3133")) >= 3
    stack.owner(run_id).kill()
    stack.cancel(run_id)
    wait_for(lambda: not processes_with("sleep\x003133"), "all programs to be gone")
    assert stack.wait_end(run_id)["status"] == "cancelled"


def test_a_frozen_worker_that_comes_back_changes_nothing(stack: Stack) -> None:
    """SIGSTOP past the lease: the program dies with it, a successor finishes, the revenant is fenced."""
    run_id = stack.submit(counting("tick", 25, 0.2))
    watcher = stack.watch(run_id)
    watcher.wait_line("tick 5")
    frozen = stack.owner(run_id)
    frozen.signal(signal.SIGSTOP)
    wait_for(lambda: stack.run(run_id)["attempt"] == 2, "the second attempt")
    frozen.signal(signal.SIGCONT)
    run = stack.wait_end(run_id)
    assert (run["status"], run["attempt"]) == ("succeeded", 2)
    events = watcher.finish()
    assert seqs(events) == list(range(1, run["last_seq"] + 1))
    assert events == stack.events(run_id)
    attempts = [event["attempt"] for event in events]
    assert attempts == sorted(attempts), "nothing of the old attempt after the new one began"
    wait_for(lambda: "run lost" in frozen.log.read_text(), "the frozen worker to notice")


def test_a_drained_worker_gives_its_run_back_uncounted(stack: Stack) -> None:
    run_id = stack.submit(counting("tick", 30, 0.1))
    watcher = stack.watch(run_id)
    watcher.wait_line("tick 3")
    assert stack.owner(run_id).stop() == 0
    run = stack.wait_end(run_id)
    assert (run["status"], run["attempt"], run["redeliveries"], run["retries"]) == ("succeeded", 2, 0, 0)
    assert seqs(watcher.finish()) == list(range(1, run["last_seq"] + 1))


def test_a_run_that_kills_its_workers_is_given_up(tmp_path: Path, sqlite_url: str) -> None:
    """Poison: after three redeliveries the run fails and its entry stands in the dead letters."""
    stack = Stack(tmp_path, sqlite_url, workers=1, JOB_MAX_REDELIVERIES="1", LEASE_S="4")
    try:
        run_id = stack.submit(shell("echo up; sleep 6000"))
        for attempt in (1, 2):
            wait_for(lambda n=attempt: stack.run(run_id)["attempt"] == n, f"attempt {attempt}")
            stack.workers[-1].kill()
            stack.workers.append(stack.add_worker(attempt))
        run = stack.wait_end(run_id)
        assert (run["status"], run["error"]["code"]) == ("failed", "worker_lost")
        wait_for(lambda: stack.http.get("/v1/dead").json()["items"], "the dead letter")
        [letter] = stack.http.get("/v1/dead").json()["items"]
        assert (letter["run_id"], letter["reason"]) == (run_id, "poison")
    finally:
        stack.close()
