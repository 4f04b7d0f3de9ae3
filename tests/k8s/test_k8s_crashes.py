"""A worker that dies at any request of a tool run: one Job, one result, every line once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_cluster.cluster import FakeCluster
from fake_cluster.faults import Fault
from fake_cluster.http import refusal
from support.stack import Process, Stack, seqs, shell, wait_for

LINES = [f"line {n}" for n in range(1, 31)]
SCRIPT = "for i in $(seq 1 30); do echo line $i; sleep 0.03; done; echo kept > file"


class Workers:
    """Workers on the session's API and one fake cluster."""

    def __init__(self, api: Stack, cluster: FakeCluster, folder: Path) -> None:
        self.api, self.cluster, self.folder = api, cluster, folder
        self.env = {
            "TOOL_EXECUTOR": "kubernetes",
            "KUBECONFIG": str(cluster.kubeconfig(folder)),
            "TOOL_NAMESPACE": "tools",
            "TOOL_IMAGE": "toolbox",
            "TOOL_SYNC_URL": api.url,
            "LEASE_S": "4",
            "WORKER_PORT": "0",
            "LOG_BATCH": "1",
        }
        self.all: list[Process] = []

    def add(self) -> Process:
        log = self.folder / f"worker{len(self.all)}.log"
        self.all.append(Process("worker.main", self.api._env(**self.env), log))
        wait_for(lambda: "worker ready" in log.read_text(), "the worker", 60)
        return self.all[-1]

    def stop(self) -> None:
        for worker in self.all:
            if worker.popen.poll() is None:
                worker.kill()


@pytest.fixture
def workers(api: Stack, cluster: FakeCluster, tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(api, cluster, tmp_path)
    yield workers
    workers.stop()


def created(cluster: FakeCluster, kind: str) -> list[Any]:
    return [r for r in cluster.requests if r.method == "POST" and r.path.endswith(f"/{kind}")]


def stdout(events: list[dict[str, Any]]) -> list[str]:
    return [e["content"] for e in events if e["type"] == "log" and e.get("stream") == "stdout"]


@pytest.mark.parametrize(
    ("method", "path", "skip", "done"),
    [
        pytest.param("POST", "/jobs$", 0, False, marks=pytest.mark.deep),
        ("POST", "/jobs$", 0, True),
        pytest.param("POST", "/secrets$", 0, False, marks=pytest.mark.deep),
        ("POST", "/secrets$", 0, True),
        pytest.param("POST", "/secrets$", 1, True, marks=pytest.mark.deep),
        ("GET", "/log$", 0, False),
        pytest.param("DELETE", "/jobs/", 0, False, marks=pytest.mark.deep),
        ("DELETE", "/jobs/", 0, True),
    ],
)
def test_killed_at_a_request(workers: Workers, method: str, path: str, skip: int, done: bool) -> None:
    """Before the request had its effect, and behind it."""
    cluster, api = workers.cluster, workers.api
    first = workers.add()
    fault = Fault(method, path, skip=skip, after=first.popen.kill)
    if not done:

        def die() -> Any:
            first.popen.kill()
            return refusal(503, "too late")

        fault = Fault(method, path, skip=skip, answer=die)
    cluster.faults.append(fault)
    run_id = api.submit(shell(SCRIPT))
    wait_for(lambda: first.popen.poll() is not None, "the worker's death", 60)
    workers.add()
    run = api.wait_end(run_id)
    assert (run["status"], run["error"]) == ("succeeded", None)
    events = api.events(run_id)
    assert stdout(events) == LINES
    assert seqs(events) == list(range(1, len(events) + 1))
    assert not [event for event in events if event["type"] == "gap"]
    jobs = {request.json()["metadata"]["name"] for request in created(cluster, "jobs")}
    assert len(jobs) == len(cluster.pods) == 1
    assert api.http.get(f"/v1/runs/{run_id}/files/file").text == "kept\n"
    wait_for(lambda: not cluster.of("jobs") and not cluster.of("secrets"), "nothing to be left", 60)


def test_killed_while_lines_come_and_while_the_next_worker_reads_them(workers: Workers) -> None:
    """Three workers, one Job: `src` says where each goes on."""
    first = workers.add()
    script = "for i in $(seq 1 30); do echo line $i; sleep 0.03; done; while [ ! -e go ]; do sleep 0.1; done"
    run_id = workers.api.submit(shell(f"{script}; echo last"))
    watcher = workers.api.watch(run_id)
    watcher.wait_line("line 10", 60)
    first.kill()
    second = workers.add()
    watcher.wait_line("line 30", 60)
    second.kill()
    workers.add()
    pod = next(iter(workers.cluster.pods.values()))
    (pod.folder / "workspace/go").touch()
    events = watcher.finish()
    assert stdout(events) == [*LINES, "last"]
    assert workers.api.run(run_id)["attempt"] == 3
    steps = [e for e in events if e["type"] == "step"]
    assert [step.get("resumed", False) for step in steps] == [False, True, True, False]


def test_a_drained_worker_leaves_its_job_to_the_next_one(workers: Workers) -> None:
    """At once, however long the program runs."""
    first = workers.add()
    run_id = workers.api.submit(shell("echo before; while [ ! -e go ]; do sleep 0.1; done; echo after"))
    watcher = workers.api.watch(run_id)
    watcher.wait_line("before", 60)
    assert first.stop() == 0
    assert workers.api.run(run_id)["status"] == "queued"
    [pod] = workers.cluster.pods.values()
    (pod.folder / "workspace/go").touch()
    workers.add()
    assert stdout(watcher.finish()) == ["before", "after"]


def test_the_job_of_a_run_that_was_cancelled_without_a_worker_is_swept(workers: Workers) -> None:
    first = workers.add()
    run_id = workers.api.submit(shell("echo ready; exec sleep 600"))
    workers.api.watch(run_id).wait_line("ready", 60)
    first.kill()
    workers.api.cancel(run_id)
    workers.add()
    assert workers.api.wait_end(run_id)["status"] == "cancelled"
    wait_for(lambda: not workers.cluster.of("jobs"), "the job to be swept", 60)


def test_a_failed_attempt_that_is_tried_again_has_a_job_of_its_own(workers: Workers) -> None:
    """And the lines of the first one do not count for the second."""
    workers.add()
    run_id = workers.api.submit(
        shell("if [ -e seen ]; then echo two; else touch seen; echo one; echo one; exit 1; fi"),
        retry_on=["exit_nonzero"],
    )
    run = workers.api.wait_end(run_id)
    assert run["status"] == "succeeded"
    assert stdout(workers.api.events(run_id)) == ["one", "one", "two"]
    assert len({request.json()["metadata"]["name"] for request in created(workers.cluster, "jobs")}) == 2
