"""deploy.sh and verify.sh on a real cluster: everything comes up, goes on whatever happens, and goes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest
from deployed import Deployed, need
from support.stack import seqs, wait_for

pytestmark = [pytest.mark.deep, pytest.mark.timeout(1800)]
LINES = 30
BEFORE = "_BEFORE"
A_ROLLOUT = 60
"""Lines, and so seconds, that a run needs to outlast one."""


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    """With the dev overlay, on an empty namespace."""
    need()
    place = Deployed("--overlay", "dev")
    try:
        place.deploy()
        place.open()
        yield place
    finally:
        place.purge()


def long_run(place: Deployed, *happenings: Callable[[], object], lines: int = LINES) -> None:
    """Follow a run of a line a second; at its 5th, 12th, 19th something happens. All lines come, once."""
    command = f"for n in $(seq {lines}); do echo line $n; sleep 1; done"
    run_id = place.submit(steps=[{"tool": "shell", "args": {"command": command}}])
    waiting = dict(zip(("line 5", "line 12", "line 19"), happenings, strict=False))
    events = place.follow(run_id, lambda line: waiting.pop(line, lambda: None)())
    assert waiting == {}
    assert events[-1]["status"] == "succeeded", events[-1]
    assert seqs(events) == list(range(1, len(events) + 1))
    shown = [e["content"] for e in events if e["type"] == "log" and e["stream"] == "stdout"]
    assert shown == [f"line {n}" for n in range(1, lines + 1)]


def test_verify_passes(deployed: Deployed) -> None:
    checks = deployed.verify()
    assert checks["tailed while it runs"]["result"] == "ok"
    assert checks["a tool's network"]["result"] in {"ok", "finding"}, "a Job ran"
    assert "its entry stands in jobs:" in checks["enqueued in Redis"]["detail"]


def test_the_same_again_changes_nothing(deployed: Deployed) -> None:
    before = deployed.kubectl("get", "deployments", "-o", "jsonpath={.items[*].metadata.generation}")
    deployed.deploy()
    assert deployed.kubectl("get", "deployments", "-o", "jsonpath={.items[*].metadata.generation}") == before


def test_pods_that_are_deleted_in_mid_run_cost_nothing(deployed: Deployed) -> None:
    """A worker told to go, an API told to go, a worker that is killed."""

    def delete(component: str, *how: str) -> None:
        label = f"app.kubernetes.io/component={component}"
        deployed.kubectl("delete", "pod", "-l", label, "--wait=false", *how)

    long_run(
        deployed,
        lambda: delete("worker", "--grace-period=0", "--force"),
        lambda: delete("api"),
        lambda: delete("worker"),
    )


def test_upgrade_and_rollback_lose_no_run_and_no_line(deployed: Deployed) -> None:
    """New pods of both come up and the old ones go; then back. Runs are submitted all the time."""
    runs: list[str] = []

    def new_pods() -> None:
        runs.extend(deployed.submit(argv=["echo", "hello"]) for _ in range(5))
        deployed.kubectl("rollout", "restart", "deployment/agent-api", "deployment/agent-worker")
        runs.extend(deployed.submit(argv=["echo", "hello"]) for _ in range(5))

    def back() -> None:
        for each in ("agent-api", "agent-worker"):
            deployed.kubectl("rollout", "status", f"deployment/{each}", "--timeout=240s")
        deployed.deploy("--rollback")
        runs.extend(deployed.submit(argv=["echo", "hello"]) for _ in range(5))

    long_run(deployed, new_pods, back, lines=2 * A_ROLLOUT)
    assert {deployed.wait_end(run_id)["status"] for run_id in runs} == {"succeeded"}


def test_one_worker_three_workers_one_worker(deployed: Deployed) -> None:
    """Those that come take runs, those that go give theirs back."""

    def workers() -> int:
        return sum(worker["lease_left_s"] > 0 for worker in deployed.ask("GET", "/v1/queue")["workers"])

    runs: list[str] = []
    for count in (1, 3, 1):
        deployed.kubectl("scale", "deployment", "agent-worker", f"--replicas={count}")
        runs.extend(deployed.submit(argv=["sleep", "2"]) for _ in range(8))
        wait_for(lambda count=count: workers() == count, f"{count} workers", 300)
    assert {deployed.wait_end(run_id)["status"] for run_id in runs} == {"succeeded"}


def test_in_process_and_back(deployed: Deployed) -> None:
    """Without a single worker pod a run still ends."""
    deployed.deploy("--in-process")
    label = "app.kubernetes.io/component=worker"
    wait_for(lambda: not deployed.kubectl("get", "pods", "-l", label, "-o", "name"), "no worker pods", 300)
    assert deployed.wait_end(deployed.submit(argv=["echo", "in process"]))["status"] == "succeeded"
    deployed.deploy("--out-of-process")
    assert deployed.kubectl("get", "deployment", "agent-worker", "-o", "jsonpath={.spec.replicas}") == "1"
    assert deployed.wait_end(deployed.submit(argv=["echo", "and back"]))["status"] == "succeeded"


def test_from_the_release_before_to_this_one_and_back() -> None:
    """Two real images: old and new processes share queue and database, and watchers miss nothing."""
    need(f"TAILRUN_IMAGE{BEFORE}", f"TAILRUN_TOOLBOX_IMAGE{BEFORE}")
    place = Deployed("--overlay", "dev")
    try:
        place.deploy(release=BEFORE)
        place.open()
        runs = [place.submit(argv=["echo", "of the release before"])]

        def upgrade() -> None:
            place.deploy()
            runs.append(place.submit(argv=["echo", "of this release"]))

        def back() -> None:
            place.deploy("--rollback")
            runs.append(place.submit(argv=["echo", "of the release before again"]))

        long_run(place, upgrade, back, lines=2 * A_ROLLOUT)
        assert {place.wait_end(run_id)["status"] for run_id in runs} == {"succeeded"}
        place.verify()
    finally:
        place.purge()


def left_of(place: Deployed) -> list[str]:
    policies = "validatingadmissionpolicies,validatingadmissionpolicybindings"
    kinds = f"priorityclasses,{policies},namespaces,clusterroles"
    return [name for name in place.kubectl("get", kinds, "-o", "name").split() if place.namespace in name]


def test_uninstall_keeps_data_and_purge_leaves_nothing() -> None:
    """After an uninstall the same volumes serve the next installation."""
    need()
    place = Deployed("--overlay", "dev")
    try:
        place.deploy()
        place.deploy("--uninstall")
        assert place.kubectl("get", "deployments,statefulsets,services", "-o", "name") == ""
        assert len(place.kubectl("get", "persistentvolumeclaims", "-o", "name").split()) == 3
    finally:
        place.purge()
    assert left_of(place) == []


def test_helm_brings_everything_up_and_takes_it_away() -> None:
    need()
    if shutil.which("helm") is None:
        pytest.skip("no helm on PATH")
    place = Deployed("--helm", "--overlay", "dev", overlay_token=False)
    try:
        place.deploy()
        checks = place.verify()
        assert checks["tailed while it runs"]["result"] == "ok"
        subprocess.run(["helm", "status", "tailrun", "-n", place.namespace], check=True, capture_output=True)
    finally:
        place.purge()
    assert left_of(place) == []
