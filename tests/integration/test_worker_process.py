"""The worker as a process: what it serves, what it says, how it starts, waits and goes."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers import free_port
from support.stack import Process, Stack, shell, wait_for

from app.db.migrate import migrate


@pytest.fixture
def stack(tmp_path: Path, sqlite_url: str) -> Iterator[Stack]:
    stack = Stack(tmp_path, sqlite_url, DRAIN_S="0.2")
    yield stack
    stack.close()


def test_it_answers_health_readiness_and_metrics(stack: Stack) -> None:
    worker = stack.workers[0]
    assert worker.get("/healthz").text == "ok\n"
    assert worker.get("/readyz").text == "ready, 0 runs in flight\n"
    assert worker.get("/nothing").status_code == 404
    run_id = stack.submit(shell("echo x"))
    stack.wait_end(run_id)
    metrics = worker.get("/metrics").text
    assert re.search(r'^tailrun_attempts_total\{status="succeeded"\} 1\.0$', metrics, re.MULTILINE)


def test_it_is_not_ready_while_redis_is_away_and_recovers(stack: Stack) -> None:
    worker = stack.workers[0]
    stack.redis.kill()
    wait_for(lambda: worker.get("/readyz").status_code == 503, "the worker to notice")
    stack.redis.start()
    wait_for(lambda: worker.get("/readyz").status_code == 200, "the worker to recover")
    assert stack.wait_end(stack.submit(shell("echo x")))["status"] == "succeeded"


def test_it_waits_for_a_database_that_is_not_migrated(stack: Stack, tmp_path: Path) -> None:
    """A cluster starts everything at once: nobody dies for being early."""
    url, port = f"sqlite:///{tmp_path / 'later.db'}", free_port()
    env = {**stack._env(WORKER_PORT=str(port)), "DATABASE_URL": url, "REDIS_PREFIX": "early:"}
    worker = Process("worker.main", env, tmp_path / "early.log")
    worker.url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: "not migrated" in worker.log.read_text(), "the worker to say what it waits for")
        assert "not migrated" in worker.get("/readyz").text
        migrate(url)
        wait_for(lambda: worker.get("/readyz").status_code == 200, "the worker to be ready")
    finally:
        assert worker.stop() == 0


def test_it_claims_nothing_while_the_database_is_locked_and_recovers(stack: Stack) -> None:
    """An API's row made just before waits in Redis; it is not lost, and counts no redelivery."""
    run_id = stack.submit(shell("echo x"), start=False)
    stack.http.post(f"/v1/runs/{run_id}/start")
    locker = sqlite3.connect(stack.database_url.removeprefix("sqlite:///"), isolation_level=None)
    stack.wait_end(run_id)
    locker.execute("BEGIN EXCLUSIVE")
    with stack.redis.client() as client:
        client.lpush("jobs:pending", f'{{"run_id":"{run_id}"}}')
    wait_for(lambda: "claiming stops" in stack.workers[0].log.read_text(), "the worker to stop claiming")
    locker.execute("ROLLBACK")
    locker.close()
    assert stack.wait_end(stack.submit(shell("echo y")))["redeliveries"] == 0


def test_a_readable_line_for_each_event(stack: Stack) -> None:
    run_id = stack.submit(shell("exit 3"))
    stack.wait_end(run_id)
    log = stack.workers[0].log.read_text()
    assert re.search(rf"info +worker +run started +run_id={run_id} attempt=1", log)
    assert re.search(rf"run ended .*status=failed exit_code=3 .*run_id={run_id}", log)
    assert "Traceback" not in log


def test_it_leaves_nothing_behind(stack: Stack) -> None:
    """After SIGTERM: exit code 0, no lease, nothing held; what it ran is queued for others."""
    run_id = stack.submit(shell("echo up; sleep 60"))
    stack.watch(run_id).wait_line("up")
    assert stack.workers[0].stop(10) == 0
    assert stack.run(run_id)["status"] == "queued"
    with stack.redis.client() as client:
        assert client.zcard("jobs:workers") == 0
        assert not client.keys("jobs:processing:*")
        assert client.llen("jobs:pending") == 1


def test_it_waits_for_a_redis_that_is_not_there_yet(stack: Stack, tmp_path: Path) -> None:
    """A clear line a second, and it goes when told to."""
    env = {**os.environ, "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0", "WORKER_PORT": str(free_port())}
    env |= {"DATABASE_URL": stack.database_url, "DATA_DIR": str(tmp_path / "other")}
    worker = Process("worker.main", env, tmp_path / "waiting.log")
    wait_for(lambda: "waiting" in worker.log.read_text(), "the worker to say so")
    assert "Redis: " in worker.log.read_text()
    assert worker.stop(10) == 0


def test_a_taken_port_is_said_and_ends_it(stack: Stack, tmp_path: Path) -> None:
    port = stack.workers[0].url.rpartition(":")[2]
    env = {**os.environ, "REDIS_URL": stack.redis.url, "DATABASE_URL": stack.database_url}
    env |= {"DATA_DIR": str(tmp_path / "other"), "WORKER_PORT": port}
    worker = Process("worker.main", env, tmp_path / "second.log")
    assert worker.popen.wait(60) == 1
    said = worker.log.read_text()
    assert "worker could not start" in said
    assert f"WORKER_PORT {port}" in said
    assert "Traceback" not in said
