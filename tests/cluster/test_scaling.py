"""Workers come with the load and go without it, by KEDA and by an HPA, and no run is the worse for it.

KEDA and a metrics adapter are the cluster's own: each test skips where its one is not installed.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import Deployed, need
from support.stack import wait_for

pytestmark = [pytest.mark.deep, pytest.mark.timeout(1800)]
FEW, MANY, SLOTS = 1, 5, 4


def need_api(group: str, of_what: str) -> None:
    need()
    done = subprocess.run(["kubectl", "get", "--raw", f"/apis/{group}"], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no {of_what} in this cluster: it does not serve {group}")


def values(folder: Path, **scaling: Any) -> Path:
    """Small workers whose programs are their own, so that the load is the queue's alone."""
    path = folder / "values.yaml"
    chosen = {
        "tools": {"executor": "local"},
        "config": {"WORKER_CONCURRENCY": SLOTS, "DRAIN_S": 5},
        "worker": {
            "resources": {"requests": {"cpu": "20m", "memory": "128Mi"}},
            "autoscaling": {"minReplicas": FEW, "maxReplicas": MANY, "scaleDownSeconds": 15, **scaling},
        },
    }
    path.write_text(yaml.safe_dump(chosen))
    return path


def workers(place: Deployed) -> int:
    return sum(worker["lease_left_s"] > 0 for worker in place.ask("GET", "/v1/queue")["workers"])


def one_to_five_to_one(place: Deployed) -> None:
    """A load that fills five workers stays until they are there; when it has gone, so do they."""
    place.deploy()
    place.open()
    wait_for(lambda: workers(place) == FEW, "one worker", 300)
    runs = [place.submit(argv=["sleep", "3600"]) for _ in range(MANY * SLOTS)]
    wait_for(lambda: workers(place) == MANY, "five workers", 600)
    wait_for(lambda: place.ask("GET", "/v1/queue")["in_flight"] == len(runs), "all runs to run", 300)
    for run_id in runs:
        place.ask("POST", f"/v1/runs/{run_id}/cancel")
    ended = [place.wait_end(run_id) for run_id in runs]
    assert [(each["status"], each["attempt"]) for each in ended] == [("cancelled", 1)] * len(runs)
    wait_for(lambda: workers(place) == FEW, "one worker again", 900)


def test_keda_scales_workers_by_what_the_queue_answers(tmp_path: Path) -> None:
    need_api("keda.sh/v1alpha1", "KEDA")
    chosen = values(tmp_path, type="keda", keda={"pollingInterval": 2})
    place = Deployed("--helm", "--overlay", "dev", "--values", str(chosen), overlay_token=False)
    try:
        one_to_five_to_one(place)
    finally:
        place.purge()


def test_an_hpa_scales_workers_by_metrics_of_an_adapter(tmp_path: Path) -> None:
    need_api("custom.metrics.k8s.io/v1beta1", "metrics adapter for Prometheus")
    place = Deployed(
        *("--helm", "--overlay", "dev", "--values", str(values(tmp_path, type="hpa"))), overlay_token=False
    )
    try:
        one_to_five_to_one(place)
    finally:
        place.purge()
