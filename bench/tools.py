"""A tool call in a cluster → its first line, stage by stage, beside a bare Job followed by kubectl.

Needs what tests/cluster needs (its cluster_place.py says what), and kubectl:

    KUBECONFIG=… TAILRUN_TOOLBOX_IMAGE=… TAILRUN_POD_HOST=… make bench WHAT=tools

Both run `echo hi` from the same image, with the same limits, in a namespace that enforces `restricted`.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "cluster")]  # `stack` is theirs here

from cluster_place import NEEDED, Place  # noqa: E402
from machine import machine, today  # noqa: E402
from stack import shell  # noqa: E402

from app.core.clock import parse_ts  # noqa: E402

TARGET = ROOT / "docs" / "benchmarks-tools.md"
ROUNDS = 10
STAGES = ("created", "scheduled", "pulled", "synced", "first_line", "ended")
MEANING = {
    "created": "Job and Secrets made",
    "scheduled": "the pod has a node",
    "pulled": "the side-car runs",
    "synced": "the run's files are in the pod",
    "first_line": "the first line is with the worker",
    "ended": "the program's end is known",
}


def tailrun(place: Place) -> dict[str, float]:
    """Make a run; return the milliseconds from one stage to the next, and from the POST to the first line."""
    began = time.time()
    run_id = place.stack.submit(shell("echo hi"))
    place.stack.wait_end(run_id, 120)
    events = place.stack.events(run_id)
    first, *_, last = [event for event in events if event["type"] == "step"]
    line = next(event for event in events if event.get("content") == "hi")
    before, taken = parse_ts(first["ts"]), dict[str, float]()
    for stage in STAGES:
        taken[stage] = max(0, last["stages"][stage] - before) / 1000
        before = last["stages"][stage]
    step_ms = (parse_ts(line["ts"]) - parse_ts(first["ts"])) / 1000
    return {**taken, "call": step_ms, "all": parse_ts(line["ts"]) / 1000 - began * 1000}


def bare(namespace: str, n: int) -> float:
    """Make a Job by kubectl and follow it; return the milliseconds to its first line."""
    name = f"bare-{n}"
    began = time.perf_counter()
    kubectl(namespace, "create", "-f", "-", content=json.dumps(_job(name)))
    said = kubectl(namespace, "logs", "-f", f"job/{name}", "--pod-running-timeout=60s")
    took = 1000 * (time.perf_counter() - began)
    if said != "hi\n":
        raise SystemExit(f"the bare Job said {said!r}")
    kubectl(namespace, "delete", "job", name, "--cascade=foreground")
    return took


def kubectl(namespace: str, *words: str, content: str | None = None) -> str:
    """Run kubectl and return what it prints."""
    argv = ["kubectl", "--namespace", namespace, *words]
    return subprocess.run(argv, input=content, capture_output=True, text=True, check=True, timeout=120).stdout


def _job(name: str) -> dict[str, Any]:
    locked = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "tool",
        "image": os.environ["TAILRUN_TOOLBOX_IMAGE"],
        "command": ["sh", "-c", "echo hi"],
        "resources": {"limits": {"cpu": "250m", "memory": "256Mi"}},
        "securityContext": locked,
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    spec = {"backoffLimit": 0, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def document(ours: Sequence[dict[str, float]], theirs: Sequence[float], busy: float, server: str) -> str:
    """Write docs/benchmarks-tools.md."""
    rows = "\n".join(
        f"| {stage}: {MEANING[stage]} | {median(run[stage] for run in ours):.0f} |" for stage in STAGES
    )
    call, whole = (median(run[key] for run in ours) for key in ("call", "all"))
    peer = median(theirs)
    return f"""# Benchmark: tool runs in a cluster

`make bench WHAT=tools` measures this where a cluster is given: `echo hi` as a step of a run, and
as a bare Job
made by `kubectl create` and followed by `kubectl logs -f`, in turn, {len(ours)} times each; medians in ms.
A tool run has a second container, which brings the run's files and takes them back; a bare Job has none.

Measured {today()} on: {machine()}; Kubernetes {server}, one node on the same machine, image present.
Load of the machine before: {busy:.1f}.

| from the stage before | ms |
|---|---|
{rows}

| to the first line | ms |
|---|---|
| from the step's begin | {call:.0f} |
| from the POST of the run | {whole:.0f} |
| bare: from `kubectl create` to the end of `kubectl logs -f` | {peer:.0f} |

Against the bare Job a tool call takes {call - peer:+.0f} ms ({call / peer:.1f} ×), files included.
"""


def main() -> None:
    """Measure and write the document."""
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise SystemExit(f"no cluster to measure on: set {', '.join(missing)}")
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tailrun-bench-", ignore_cleanup_errors=True) as folder:
        place = Place(Path(folder))
        try:
            tailrun(place)  # both once, to warm up
            bare(place.namespace, 0)
            ours, theirs = list[dict[str, float]](), list[float]()
            for n in range(1, ROUNDS + 1):
                ours.append(tailrun(place))
                theirs.append(bare(place.namespace, n))
                print(f"  {n}: Tailrun {ours[-1]['call']:.0f} ms, bare Job {theirs[-1]:.0f} ms", flush=True)
            version = json.loads(kubectl(place.namespace, "version", "-o", "json"))["serverVersion"]
            TARGET.write_text(document(ours, theirs, busy, version["gitVersion"]), encoding="utf-8")
        finally:
            with redirect_stdout(io.StringIO()):  # it shows what its processes said
                place.close()
    print(f"{TARGET.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
