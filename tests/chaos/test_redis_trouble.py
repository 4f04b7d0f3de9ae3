"""Redis freezes, dies, comes back, comes back empty: runs go on, and every line arrives once."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stack import Stack, seqs, shell, wait_for

TICKS = 'for i in $(seq 1 60); do echo "tick $i"; sleep 0.15; done'


@pytest.fixture
def stack(tmp_path: Path, sqlite_url: str) -> Iterator[Stack]:
    stack = Stack(tmp_path, sqlite_url)
    yield stack
    stack.close()


def ticks_of(events: list[dict[str, str]]) -> list[str]:
    return [event["content"] for event in events if event["type"] == "log"]


def test_a_run_goes_on_while_redis_is_killed_and_restarted(stack: Stack) -> None:
    """Its lines go to the database meanwhile, and to watchers; the run keeps its owner."""
    run_id = stack.submit(shell(TICKS))
    watcher = stack.watch(run_id)
    watcher.wait_line("tick 5")
    stack.redis.kill()
    watcher.wait_line("tick 20")
    stack.redis.start()
    run = stack.wait_end(run_id)
    assert (run["status"], run["attempt"]) == ("succeeded", 1)
    assert ticks_of(watcher.finish()) == [f"tick {i}" for i in range(1, 61)]
    assert seqs(watcher.events) == list(range(1, run["last_seq"] + 1))


def test_a_run_goes_on_while_redis_is_frozen_longer_than_the_lease(stack: Stack) -> None:
    """Seven seconds of SIGSTOP: nobody is reaped for Redis' own silence."""
    run_id = stack.submit(shell(TICKS))
    watcher = stack.watch(run_id)
    watcher.wait_line("tick 5")
    stack.redis.freeze()
    wait_for(lambda: "tick 45" in ticks_of(stack.events(run_id)), "lines in the database")
    stack.redis.thaw()
    run = stack.wait_end(run_id)
    assert (run["status"], run["attempt"]) == ("succeeded", 1)
    assert ticks_of(watcher.finish()) == [f"tick {i}" for i in range(1, 61)]
    assert seqs(watcher.events) == list(range(1, run["last_seq"] + 1))


def test_a_redis_that_comes_back_empty_loses_no_run(stack: Stack) -> None:
    """Queued runs are pushed again, the running one keeps its owner."""
    slow = [stack.submit(shell(TICKS)) for _ in range(10)]
    late = [stack.submit(shell("echo late")) for _ in range(3)]
    stack.watch(slow[0]).wait_line("tick 3")
    stack.redis.kill()
    shutil.rmtree(stack.redis.folder)
    stack.redis.start()
    for run_id in (*slow, *late):
        run = stack.wait_end(run_id, 90)
        assert (run["status"], run["attempt"]) == ("succeeded", 1)


def test_a_run_is_accepted_while_redis_is_down(stack: Stack) -> None:
    """The row stands, the answer is 201, and the reconciler pushes."""
    stack.redis.kill()
    run_id = stack.submit(shell("echo here"))
    assert stack.run(run_id)["status"] == "queued"
    assert stack.http.get("/readyz").status_code == 503
    stack.redis.start()
    assert stack.wait_end(run_id)["status"] == "succeeded"


def test_a_push_while_redis_is_frozen_is_one_entry(stack: Stack) -> None:
    stack.redis.freeze()
    run_id = stack.submit(shell("echo x >> count.txt"))
    stack.redis.thaw()
    assert stack.wait_end(run_id)["attempt"] == 1
    assert stack.http.get(f"/v1/runs/{run_id}/files/count.txt").text == "x\n"


def test_seven_frozen_seconds_in_mid_enqueue_make_one_entry(tmp_path: Path, sqlite_url: str) -> None:
    """The client gives up and its push stands in the socket; a retry would be a second job."""
    stack = Stack(tmp_path, sqlite_url, workers=0)
    try:
        before = stack.submit(shell("true"))  # Redis knows the script from now on
        stack.redis.freeze()
        frozen_at = time.monotonic()
        run_id = stack.submit(shell("echo x >> count.txt"))
        wait_for(lambda: time.monotonic() > frozen_at + 7, "seven seconds to pass")
        stack.redis.thaw()
        with stack.redis.client() as client:
            wait_for(lambda: client.llen("jobs:pending") > 1, "the push to arrive")
            entries = [json.loads(entry)["run_id"] for entry in client.lrange("jobs:pending", 0, -1)]
            assert entries == [run_id, before]
            stack.workers.append(stack.add_worker(0))
            assert stack.wait_end(run_id)["attempt"] == 1
            wait_for(lambda: not client.keys("jobs:processing:*"), "both acks")
            assert client.llen("jobs:pending") == 0
        assert stack.http.get(f"/v1/runs/{run_id}/files/count.txt").text == "x\n"
    finally:
        stack.close()


def test_killed_subscriptions_lose_no_line(stack: Stack) -> None:
    """CLIENT KILL TYPE pubsub: the library reconnects silently, the hub must notice."""
    run_id = stack.submit(shell(TICKS))
    watcher = stack.watch(run_id)
    with stack.redis.client() as client:
        for line in ("tick 5", "tick 20", "tick 35"):
            watcher.wait_line(line)
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    run = stack.wait_end(run_id)
    assert seqs(watcher.finish()) == list(range(1, run["last_seq"] + 1))
    assert watcher.reconnects == 0, "the client's own connection was never cut"


def test_garbage_in_the_queue_stops_nobody(stack: Stack) -> None:
    """Each piece goes to the dead letters with its reason and text; the next run runs."""
    garbage = ["", "not json", "[1,2]", '"text"', '{"run_id":7}', '{"run_id":""}', "\x00\x01", "x" * 100_000]
    unknown = json.dumps({"run_id": "00000000-0000-4000-8000-000000000000"})
    with stack.redis.client() as client:
        client.lpush("jobs:pending", *garbage, unknown)
    run_id = stack.submit(shell("echo fine"))
    assert stack.wait_end(run_id)["status"] == "succeeded"
    with stack.redis.client() as client:
        wait_for(lambda: client.llen("jobs:dead") == len(garbage) + 1, "the dead letters")
        letters = [json.loads(raw) for raw in client.lrange("jobs:dead", 0, -1)]
        assert client.llen("jobs:pending") == 0
    assert sorted(letter["reason"] for letter in letters) == ["malformed"] * len(garbage) + ["unknown_run"]
    assert {letter["raw"] for letter in letters} == {*garbage, unknown}


def test_an_entry_pushed_by_hand_starts_a_held_run(stack: Stack) -> None:
    run_id = stack.submit(shell("echo by hand"), start=False)
    assert stack.run(run_id)["status"] == "created"
    with stack.redis.client() as client:
        client.lpush("jobs:pending", json.dumps({"run_id": run_id}))
    assert stack.wait_end(run_id)["status"] == "succeeded"


def test_a_doubled_entry_runs_once(stack: Stack) -> None:
    """Also while it is in flight, and after it has ended."""
    run_id = stack.submit(shell("echo x >> count.txt; sleep 1"))
    entry = json.dumps({"run_id": run_id})
    with stack.redis.client() as client:
        client.lpush("jobs:pending", entry, entry)
        stack.wait_end(run_id)
        client.lpush("jobs:pending", entry)
        wait_for(lambda: client.llen("jobs:pending") == 0, "the entry to be dropped")
        wait_for(lambda: not client.keys("jobs:processing:*"), "nothing to be held")
    assert stack.http.get(f"/v1/runs/{run_id}/files/count.txt").text == "x\n"
    assert stack.run(run_id)["attempt"] == 1


def test_nothing_but_the_contract_stands_in_redis_afterwards(stack: Stack) -> None:
    run_id = stack.submit(shell("echo x"))
    stack.wait_end(run_id)
    with stack.redis.client() as client:
        wait_for(lambda: not client.keys("jobs:processing:*"), "the ack")
        names = {key.replace(run_id, "<run>") for key in client.keys("*")}
    assert {name for name in names if not name.startswith(("jobs:leader:", "jobs:probe"))} == {
        "jobs:workers",
        "jobs:tick",
        "jobs:mark:<run>:0",
        "agent:tail:<run>",
        "agent:fence:<run>",
    }
