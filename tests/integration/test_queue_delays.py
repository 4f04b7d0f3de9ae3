"""The whole system: runs that say themselves when to try again, when to start, and what goes first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stack import Stack, seqs, shell, wait_for

from app.core.clock import format_ts, parse_ts

FAST = {"RETRY_BASE_S": "0.01", "RETRY_MAX_S": "0.01"}


@pytest.fixture
def stack(tmp_path: Path, system_url: str) -> Iterator[Stack]:
    stack = Stack(tmp_path, system_url, WORKER_CONCURRENCY="1", **FAST)
    yield stack
    stack.close()


def in_seconds(seconds: float) -> str:
    return format_ts(time.time_ns() // 1000 + int(seconds * 1_000_000))


def test_a_failed_step_starts_again_and_finished_ones_do_not(stack: Stack) -> None:
    """`retry_on: [exit_nonzero]`: the third attempt succeeds; the first step ran once."""
    marks = stack.folder / "marks"
    steps = [
        shell(f"echo first >> {marks}"),
        shell(f"echo second >> {marks}; test $(grep -c second {marks}) -eq 3"),
        shell(f"echo third >> {marks}"),
    ]
    run_id = stack.submit(*steps, retry_on=["exit_nonzero"])
    run = stack.wait_end(run_id)
    assert (run["status"], run["retries"], run["attempt"]) == ("succeeded", 2, 3)
    assert marks.read_text().split() == ["first", "second", "second", "second", "third"]
    assert seqs(stack.events(run_id)) == list(range(1, run["last_seq"] + 1))


def test_a_timeout_is_tried_again_where_the_run_says_so(stack: Stack) -> None:
    """And ends as `timed_out`, with a dead letter, when the tries are used up."""
    run_id = stack.submit(shell("sleep 60", timeout_s=0.2), retry_on=["timeout"], max_attempts=2)
    run = stack.wait_end(run_id)
    assert (run["status"], run["retries"], run["error"]["code"]) == ("timed_out", 1, "timeout")
    wait_for(lambda: stack.http.get(f"/v1/dead/{run_id}").status_code == 200, "the dead letter")
    letter = stack.http.get(f"/v1/dead/{run_id}").json()
    assert (letter["reason"], letter["logs"][-1]["type"]) == ("retries_exhausted", "end")


def test_without_a_word_a_failed_program_is_final(stack: Stack) -> None:
    assert stack.wait_end(stack.submit(shell("exit 3")))["attempt"] == 1
    unlisted = stack.wait_end(stack.submit(shell("exit 3"), retry_on=["timeout"]))
    assert (unlisted["attempt"], unlisted["error"]["code"]) == (1, "exit_nonzero")


def test_a_run_starts_at_its_time(stack: Stack) -> None:
    """Not before, and within two seconds after."""
    at = in_seconds(1.5)
    run = stack.wait_end(stack.submit(shell("echo x"), run_at=at))
    assert run["status"] == "succeeded"
    assert 0 <= parse_ts(run["started_at"]) - parse_ts(at) < 2_000_000


def test_a_delayed_run_survives_a_redis_that_lost_everything(stack: Stack) -> None:
    """The reconciler puts it back to where it waited, by its row."""
    at = in_seconds(9)
    run_id = stack.submit(shell("echo x"), run_at=at)
    with stack.redis.client() as client:
        client.delete("jobs:delayed")
        wait_for(
            lambda: client.zcard("jobs:delayed") == 1 or stack.run(run_id)["status"] != "queued",
            "the reconciler",
        )
    assert parse_ts(stack.wait_end(run_id)["started_at"]) >= parse_ts(at)


def test_high_priority_runs_next(stack: Stack) -> None:
    """With one slot that is busy: the one that came last is taken first."""
    order = stack.folder / "order"
    gate = stack.folder / "gate"
    blocker = stack.submit(shell(f"while ! test -e {gate}; do sleep 0.02; done"))
    wait_for(lambda: stack.run(blocker)["status"] == "running", "the slot to be taken")
    names = [stack.submit(shell(f"echo {name} >> {order}")) for name in ("a", "b")]
    names.append(stack.submit(shell(f"echo high >> {order}"), priority="high"))
    gate.touch()
    for run_id in names:
        assert stack.wait_end(run_id)["status"] == "succeeded"
    assert order.read_text().split() == ["high", "a", "b"]
