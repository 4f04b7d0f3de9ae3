"""Whatever way a run ends, what it had in Redis goes: every key of a run has an expiry, and a short one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stack import Stack, shell, wait_for

TAIL_TTL_S = 120


@pytest.fixture
def stack(tmp_path: Path, system_url: str) -> Iterator[Stack]:
    stack = Stack(
        tmp_path, system_url, TAIL_TTL_S=str(TAIL_TTL_S), RETRY_BASE_S="600", RETRY_MAX_S="600", DRAIN_S="1"
    )
    yield stack
    stack.close()


def left_of(stack: Stack, runs: list[str]) -> dict[str, int]:
    """Keys of these runs that stay for longer than the end of a run lets them, with their lives."""
    lives = stack.lives().items()
    return {
        key: life for key, life in lives if any(run in key for run in runs) and not 0 <= life <= TAIL_TTL_S
    }


def test_every_end_of_a_run_leaves_nothing(stack: Stack) -> None:
    """By itself or cancelled, before, between and in attempts, too late, and with its retries used up."""
    later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3000))
    again = {"retry_on": ["exit_nonzero"], "max_attempts": 3}
    ended = [
        stack.submit(shell("echo x")),
        stack.submit(shell("echo x; exit 3")),
        stack.submit(shell("echo x; sleep 60"), timeout_s=1),
        stack.submit(argv=["sh", "-c", "echo x; exit 3"], retry_on=["exit_nonzero"], max_attempts=1),
    ]
    held, waiting = stack.submit(shell("true"), start=False), stack.submit(shell("true"), run_at=later)
    between = [stack.submit(argv=["sh", "-c", "echo x; exit 3"], **again) for _ in range(3)]
    running = stack.submit(shell("echo x; sleep 600"))
    with stack.redis.client() as client:
        wait_for(lambda: client.zcard("jobs:delayed") == 1 + len(between), "the pause between two attempts")
    stack.watch(running).wait_line("x")
    cancelled = [held, waiting, *between, running]
    for run_id in cancelled:
        stack.cancel(run_id)
    for run_id in (*ended, *cancelled):
        stack.wait_end(run_id)
    with stack.redis.client() as client:
        wait_for(lambda: not client.keys("jobs:processing:*"), "the acks")
        assert client.zrange("jobs:delayed", 0, -1) == []
    assert left_of(stack, [*ended, *cancelled]) == {}


def test_a_run_that_lost_its_worker_leaves_nothing(stack: Stack) -> None:
    """Cancelled while nobody has it, and taken over from a worker that comes back behind the end."""
    orphan, taken = stack.submit(shell("echo x; sleep 600")), stack.submit(shell("echo x; sleep 3"))
    for run_id in (orphan, taken):
        stack.watch(run_id).wait_line("x")
    frozen = stack.workers[0]
    frozen.signal(signal.SIGSTOP)
    wait_for(lambda: _cancelled(stack, orphan), "the orphan's end")
    stack.workers.append(stack.add_worker(1))
    assert stack.wait_end(taken)["attempt"] == 2
    frozen.signal(signal.SIGCONT)
    wait_for(lambda: frozen.log.read_text().count("run lost") == 2, "the frozen worker to notice")
    assert left_of(stack, [orphan, taken]) == {}


def test_a_run_that_goes_on_has_keys_that_end_some_day(stack: Stack) -> None:
    """Should nobody be there to see to its end."""
    run_id = stack.submit(shell("echo x; sleep 600"))
    stack.watch(run_id).wait_line("x")
    lives = {key: life for key, life in stack.lives().items() if run_id in key and "mark" not in key}
    assert len(lives) == 2
    assert all(TAIL_TTL_S < life <= 86_400 for life in lives.values()), lives


def _cancelled(stack: Stack, run_id: str) -> bool:
    stack.cancel(run_id)
    return stack.run(run_id)["status"] == "cancelled"
