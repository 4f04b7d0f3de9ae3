"""No worker is alive: the API lets one of its own run, and lets go of it when others are back."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.servers import free_port
from support.stack import Process, Stack, shell, wait_for

AFTER_S = 1.0
NEXT_S = 30.0


def fallback(folder: Path, url: str, **settings: str) -> Stack:
    """DRAIN_S is short: no worker that may finish its runs asks for it."""
    return Stack(folder, url, workers=0, WORKER_FALLBACK_S=f"{AFTER_S:g}", DRAIN_S="3", **settings)


@pytest.fixture
def stack(tmp_path: Path, sqlite_url: str) -> Iterator[Stack]:
    stack = fallback(tmp_path, sqlite_url)
    family = [*children(stack.api)]
    try:
        yield stack
        family += children(stack.api)
    finally:
        stack.close()
        wait_for(lambda: not any(map(alive, family)), "the API's children to end", 60)


def children(api: Process) -> list[psutil.Process]:
    """The API's children: who supervises, its worker, the programs of that."""
    try:
        return psutil.Process(api.popen.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def leases(stack: Stack) -> list[str]:
    with stack.redis.client() as client:
        return sorted(client.zrange("jobs:workers", 0, -1))


def own(stack: Stack) -> list[str]:
    return [name for name in leases(stack) if name.startswith("fallback-")]


def worker_of(stack: Stack, run: dict[str, Any]) -> str:
    """Who had the run last."""
    asked = "SELECT worker_id FROM attempts WHERE run_id = ? ORDER BY attempt DESC"
    with contextlib.closing(sqlite3.connect(stack.database_url.removeprefix("sqlite:///"))) as db:
        return db.execute(asked, (run["run_id"],)).fetchone()[0]


def another_api(stack: Stack) -> Process:
    port = free_port()
    api = Process("main", stack._env(PORT=str(port)), stack.folder / f"api{port}.log")
    api.url = f"http://127.0.0.1:{port}"
    return api


def began(stack: Stack, run_id: str) -> Callable[[], bool]:
    return lambda: any(event.get("content") == "began" for event in stack.events(run_id))


def test_without_a_worker_the_api_goes_on(stack: Stack) -> None:
    """A queued run is told at once who will take it, and is taken."""
    run_id = stack.submit(shell("env"))
    assert stack.wait_end(run_id, NEXT_S)["status"] == "succeeded"
    [name] = own(stack)
    assert [each["worker_id"] for each in stack.http.get("/v1/queue").json()["workers"]] == [name]
    [keeps, works, *_] = children(stack.api)
    assert (keeps.cmdline()[-4:-1], works.cmdline()[-2]) == (["worker", "--keep", "--name"], "--name")
    assert "API_TOKEN" not in works.environ()
    assert works.environ()["WORKER_PORT"] == "0"


def test_its_worker_is_started_again(stack: Stack) -> None:
    wait_for(lambda: own(stack), "a worker of the API's own", NEXT_S)
    [first] = own(stack)
    psutil.Process(int(first.split("-")[-2])).kill()
    run = stack.wait_end(stack.submit(shell("true")), NEXT_S)
    assert run["status"] == "succeeded"
    assert worker_of(stack, run) != first


def test_a_real_worker_comes_and_the_api_s_own_finishes_and_goes(stack: Stack, tmp_path: Path) -> None:
    """However long its run takes: DRAIN_S is for a worker that is told to stop."""
    go_on = tmp_path / "go-on"
    run_id = stack.submit(shell(f"echo began; until [ -e {go_on} ]; do sleep 0.05; done"))
    wait_for(began(stack, run_id), "the run to begin", NEXT_S)
    family = children(stack.api)
    stack.workers.append(stack.add_worker(1))
    wait_for(lambda: "finishes its runs and ends" in stack.api.log.read_text(), "the API to let go", NEXT_S)
    second = stack.wait_end(stack.submit(shell("true")), NEXT_S)
    assert not worker_of(stack, second).startswith("fallback-")
    assert stack.run(run_id)["status"] == "running"
    go_on.touch()
    run = stack.wait_end(run_id, NEXT_S)
    assert (run["status"], run["attempt"]) == ("succeeded", 1)
    wait_for(lambda: not any(map(alive, family)), "the API's own worker to be gone", NEXT_S)
    assert own(stack) == []


def test_workers_that_go_away_again_are_replaced_though_the_last_one_still_finishes(
    stack: Stack, tmp_path: Path
) -> None:
    """What has been let go of claims nothing: it is no reason to wait."""
    go_on = tmp_path / "go-on"
    long = stack.submit(shell(f"echo began; until [ -e {go_on} ]; do sleep 0.05; done"))
    wait_for(began(stack, long), "the run to begin", NEXT_S)
    worker = stack.add_worker(1)
    wait_for(lambda: "finishes its runs and ends" in stack.api.log.read_text(), "the API to let go", NEXT_S)
    assert worker.stop() == 0
    run = stack.wait_end(stack.submit(shell("true")), NEXT_S)
    assert worker_of(stack, run).startswith("fallback-")
    go_on.touch()
    assert stack.wait_end(long, NEXT_S)["attempt"] == 1


def test_the_api_s_end_drains_its_worker(stack: Stack) -> None:
    run_id = stack.submit(shell("echo began; sleep 1; echo done"))
    wait_for(began(stack, run_id), "the run to begin", NEXT_S)
    family = children(stack.api)
    assert stack.api.stop() == 0
    assert not any(map(alive, family))
    stack.api.start()
    stack.wait_ready()
    run = stack.wait_end(run_id, NEXT_S)
    assert (run["status"], run["attempt"]) == ("succeeded", 1)


def test_its_worker_dies_with_an_api_that_is_killed(stack: Stack) -> None:
    run_id = stack.submit(shell("echo began; sleep 6000"))
    wait_for(began(stack, run_id), "the run to begin", NEXT_S)
    family = children(stack.api)
    stack.api.kill()
    wait_for(lambda: not any(map(alive, family)), "what the API had started to end", 60)
    stack.api.start()
    stack.wait_ready()
    wait_for(lambda: stack.run(run_id)["attempt"] == 2, "another worker to take the run", NEXT_S)


def test_two_apis_have_one(stack: Stack) -> None:
    """And the other one goes on with it when the first is killed."""
    second = another_api(stack)
    try:
        wait_for(lambda: own(stack), "a worker", NEXT_S)
        [name] = own(stack)
        until = time.monotonic() + 3 * AFTER_S
        wait_for(lambda: time.monotonic() > until or len(own(stack)) != 1, "time to go by")
        assert own(stack) == [name]
        has, other = (stack.api, second) if children(stack.api) else (second, stack.api)
        assert not children(other)
        has.kill()
        wait_for(lambda: own(stack) and own(stack) != [name], "the other API's worker", 60)
        assert children(other)
    finally:
        second.stop()


def test_it_is_off_by_default(tmp_path: Path, sqlite_url: str) -> None:
    """The run says why it waits, once, and what to do; so does the queue."""
    stack = Stack(tmp_path, sqlite_url, workers=0)
    try:
        run_id = stack.submit(shell("true"))
        watcher = stack.watch(run_id)
        said = "waiting: no worker is alive: start one with `tailrun worker`"
        wait_for(lambda: any(said in line for line in watcher.lines()), "the run to be told", 20)
        assert "tailrun worker" in stack.http.get("/v1/queue").json()["idle"]
        assert not children(stack.api)
        assert stack.api.stop() == 0
        stack.api.start()
        stack.wait_ready()
        later = stack.submit(shell("true"))
        wait_for(lambda: said in str(stack.events(later)), "another run to be told", 20)
        stack.workers.append(stack.add_worker(1))
        stack.wait_end(run_id)
        assert len([e for e in stack.events(run_id) if said in str(e.get("content"))]) == 1
        assert stack.http.get("/v1/queue").json()["idle"] is None
    finally:
        stack.close()


def test_a_command_line_that_follows_a_waiting_run_says_so(tmp_path: Path, sqlite_url: str) -> None:
    stack = Stack(tmp_path, sqlite_url, workers=0)
    env = stack._env(TAILRUN_URL=stack.url, TAILRUN_TOKEN="test-admin-token")
    command = [sys.executable, "-m", "app", "run", "--", "true"]
    log = tmp_path / "cli.log"
    try:
        with log.open("wb") as out:
            cli = subprocess.Popen(command, env=env, stdout=out, stderr=out, cwd=tmp_path)
        wait_for(lambda: "waiting: no worker is alive" in log.read_text(), "the line")
        queue = subprocess.run(
            [*command[:3], "queue"], env=env, capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert "no worker is alive: start one" in queue.stdout
        cli.send_signal(signal.SIGINT)
        cli.wait(60)
        assert log.read_text().count("no worker is alive") == 1
    finally:
        stack.close()
