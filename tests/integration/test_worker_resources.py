"""A real worker that runs out of file handles: it claims nothing, says so, and goes on."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stack import Stack, shell, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="changes the limits of a running process")


@pytest.fixture
def stack(tmp_path: Path, sqlite_url: str) -> Iterator[Stack]:
    stack = Stack(tmp_path, sqlite_url)
    yield stack
    stack.close()


def test_it_waits_until_it_has_enough(stack: Stack) -> None:
    """Another worker may take the run meanwhile; here it waits, is not failed, and counts no attempt."""
    [worker] = stack.workers
    before = resource.prlimit(worker.popen.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(worker.popen.pid, resource.RLIMIT_NOFILE, (64, before[1]))
    wait_for(lambda: worker.get("/readyz").status_code == 503, "the worker to notice")
    assert "MIN_FREE_FDS" in worker.get("/readyz").text
    assert 'tailrun_worker_lacks{resource="fds"} 1.0' in worker.get("/metrics").text
    run_id = stack.submit(shell("echo x"))
    said = "waiting: no worker takes runs: fds: "
    wait_for(lambda: [e for e in stack.events(run_id) if said in str(e.get("content"))], "the run to be told")
    [shown] = stack.http.get("/v1/queue").json()["workers"]
    assert "MIN_FREE_FDS" in shown["lacks"]
    second = stack.add_worker(9)
    stack.workers.append(second)
    run = stack.wait_end(run_id)
    assert run["status"] == "succeeded"
    with stack.redis.client() as client:
        assert client.llen("jobs:pending") == 0
    assert f"run started  run_id={run_id}" in second.log.read_text()
    assert second.stop() == 0
    stack.workers.remove(second)
    waiting = stack.submit(shell("echo y"))
    assert stack.run(waiting)["status"] == "queued"
    resource.prlimit(worker.popen.pid, resource.RLIMIT_NOFILE, before)
    run = stack.wait_end(waiting)
    assert len([e for e in stack.events(run_id) if said in str(e.get("content"))]) == 1
    assert (run["status"], run["attempt"], run["redeliveries"]) == ("succeeded", 1, 0)
    log = worker.log.read_text()
    assert "claiming nothing, this machine lacks something" in log
    assert "claiming again, this machine has enough" in log
