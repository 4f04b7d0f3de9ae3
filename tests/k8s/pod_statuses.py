"""States of pods and Jobs as clusters have shown them, and what each means."""

from __future__ import annotations

from typing import Any

from app.k8s.pod_state import State
from tailrun.process.errors import ErrorCode as Code

Thing = dict[str, Any]


def pod(
    tool: Thing | None = None, sync: Thing | None = None, *, node: str | None = "node1", **status: Any
) -> Thing:
    found: Thing = {"phase": "Pending", **status}
    if tool is not None:
        found["containerStatuses"] = [{"name": "tool", **tool}]
    if sync is not None:
        found["initContainerStatuses"] = [{"name": "sync", **sync}]
    return {"metadata": {"name": "p", "uid": "u"}, "spec": {"nodeName": node}, "status": found}


def waiting(reason: str, message: str = "") -> Thing:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


def ended(code: int, reason: str = "Error", message: str = "") -> Thing:
    return {"state": {"terminated": {"exitCode": code, "reason": reason, "message": message}}}


def condition(kind: str, status: str, reason: str = "", message: str = "") -> Thing:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def disrupted(reason: str) -> Thing:
    return condition("DisruptionTarget", "True", reason, "said so")


def job(*conditions: Thing) -> Thing:
    return {"metadata": {"name": "j"}, "status": {"conditions": list(conditions)}}


def event(message: str) -> Thing:
    return {"reason": "FailedCreate", "message": message}


RUNNING: Thing = {"state": {"running": {"startedAt": "2026-11-20T12:00:00Z"}}}
OOM = ended(137, "OOMKilled")
SYNC_OOM: Thing = {**RUNNING, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
DEADLINE = job(condition("Failed", "True", "DeadlineExceeded"))
BACKOFF = job(condition("Failed", "True", "BackoffLimitExceeded"))
UNSCHEDULABLE = condition("PodScheduled", "False", "Unschedulable", "0/3 nodes are available")
QUOTA = event(
    'pods "x" is forbidden: exceeded quota: tools, requested: pods=1, used: pods=5, limited: pods=5'
)
SECURITY = event('pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true')
NOT_FOUND = 'rpc error: code = NotFound desc = failed to pull and unpack image "a:b": not found'
NO_DNS = "dial tcp: lookup registry on 10.96.0.10:53: server misbehaving"

S, C = State, Code
STATUSES: dict[str, tuple[Thing, tuple[State, Code | None, bool]]] = {
    "kubelet evicted it for memory": (
        {"pod": pod(OOM, phase="Failed", reason="Evicted", message="The node was low on resource: memory.")},
        (S.FAILED, C.EVICTED, False),
    ),
    "evicted for disk": (
        {"pod": pod(phase="Failed", reason="Evicted", message="Pod ephemeral local storage usage exceeds")},
        (S.FAILED, C.EVICTED, False),
    ),
    "evicted over the API": (
        {"pod": pod(ended(143), conditions=[disrupted("EvictionByEvictionAPI")])},
        (S.FAILED, C.EVICTED, False),
    ),
    "preempted": (
        {"pod": pod(RUNNING, conditions=[disrupted("PreemptionByScheduler")])},
        (S.FAILED, C.EVICTED, False),
    ),
    "the kubelet ends it": (
        {"pod": pod(ended(137), conditions=[disrupted("TerminationByKubelet")])},
        (S.FAILED, C.EVICTED, False),
    ),
    "the node shuts down": (
        {
            "pod": pod(
                phase="Failed", reason="NodeShutdown", message="Pod was terminated in response to shutdown"
            )
        },
        (S.FAILED, C.EVICTED, False),
    ),
    "evicted, whatever the exit code": (
        {"pod": pod(ended(3), conditions=[disrupted("EvictionByEvictionAPI")]), "job": BACKOFF},
        (S.FAILED, C.EVICTED, False),
    ),
    "taints of a lost node": (
        {"pod": pod(RUNNING, conditions=[disrupted("DeletionByTaintManager")])},
        (S.FAILED, C.WORKER_LOST, False),
    ),
    "collected with its node": (
        {"pod": pod(phase="Failed", conditions=[disrupted("DeletionByPodGC")])},
        (S.FAILED, C.WORKER_LOST, False),
    ),
    "a node that is lost": ({"pod": pod(RUNNING, reason="NodeLost")}, (S.FAILED, C.WORKER_LOST, False)),
    "a node that says nothing": ({"pod": pod(RUNNING, phase="Unknown")}, (S.FAILED, C.WORKER_LOST, False)),
    "no room on its node": (
        {"pod": pod(phase="Failed", reason="OutOfcpu", message="Pod was rejected")},
        (S.FAILED, C.UNSCHEDULABLE, False),
    ),
    "refused by its node's labels": (
        {"pod": pod(phase="Failed", reason="NodeAffinity")},
        (S.FAILED, C.UNSCHEDULABLE, False),
    ),
    "side-car out of memory while it brings the files": (
        {"pod": pod(waiting("PodInitializing"), SYNC_OOM)},
        (S.FAILED, C.OOM_KILLED, False),
    ),
    "side-car out of memory beside a failed tool": (
        {"pod": pod(ended(1), OOM)},
        (S.FAILED, C.OOM_KILLED, False),
    ),
    "side-car out of memory beside a tool that went well": (
        {"pod": pod(ended(0), OOM)},
        (S.ENDED, None, False),
    ),
    "tool out of memory": ({"pod": pod(OOM, RUNNING)}, (S.FAILED, C.OOM_KILLED, False)),
    "a child of the tool out of memory": (
        {"pod": pod(ended(3, "OOMKilled"), RUNNING)},
        (S.FAILED, C.OOM_KILLED, False),
    ),
    "no such image": ({"pod": pod(waiting("ErrImagePull", NOT_FOUND))}, (S.FAILED, C.IMAGE_PULL, True)),
    "no such image, told again": (
        {"pod": pod(waiting("ImagePullBackOff", f'Back-off pulling image "a:b": ErrImagePull: {NOT_FOUND}'))},
        (S.FAILED, C.IMAGE_PULL, True),
    ),
    "not allowed to pull": (
        {"pod": pod(waiting("ErrImagePull", "pull access denied, repository does not exist or may require"))},
        (S.FAILED, C.IMAGE_PULL, True),
    ),
    "a registry that asks who we are": (
        {"pod": pod(waiting("ErrImagePull", "failed to authorize: 401 Unauthorized"))},
        (S.FAILED, C.IMAGE_PULL, True),
    ),
    "no image's name": (
        {"pod": pod(waiting("InvalidImageName", "couldn't parse"))},
        (S.FAILED, C.IMAGE_PULL, True),
    ),
    "an image that may not be pulled": (
        {"pod": pod(waiting("ErrImageNeverPull"))},
        (S.FAILED, C.IMAGE_PULL, True),
    ),
    "a registry that is away": (
        {"pod": pod(waiting("ErrImagePull", NO_DNS))},
        (S.STARTING, C.IMAGE_PULL, False),
    ),
    "the same, told again": (
        {"pod": pod(waiting("ImagePullBackOff", NO_DNS))},
        (S.STARTING, C.IMAGE_PULL, False),
    ),
    "the side-car's image": (
        {"pod": pod(sync=waiting("ErrImagePull", NOT_FOUND))},
        (S.FAILED, C.IMAGE_PULL, True),
    ),
    "our Secret is on its way": (
        {"pod": pod(waiting("CreateContainerConfigError", 'secret "tool-1-env" not found'))},
        (S.STARTING, C.START_FAILED, False),
    ),
    "an image that runs as root": (
        {
            "pod": pod(
                waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")
            )
        },
        (S.FAILED, C.START_FAILED, True),
    ),
    "a container that can't be made": (
        {"pod": pod(waiting("CreateContainerError", "context deadline exceeded"))},
        (S.FAILED, C.START_FAILED, True),
    ),
    "no such program": (
        {"pod": pod(ended(128, "StartError", 'exec: "nope": executable file not found in $PATH'))},
        (S.FAILED, C.START_FAILED, True),
    ),
    "a side-car that ends again and again": (
        {
            "pod": pod(
                waiting("PodInitializing"), {**waiting("CrashLoopBackOff"), "lastState": ended(1)["state"]}
            )
        },
        (S.FAILED, C.EXECUTOR_UNAVAILABLE, False),
    ),
    "no node for it": (
        {"pod": pod(node=None, conditions=[UNSCHEDULABLE])},
        (S.PLACING, C.UNSCHEDULABLE, False),
    ),
    "not looked at yet": ({"pod": pod(node=None)}, (S.PLACING, C.UNSCHEDULABLE, False)),
    "quota used up": ({"pod": None, "events": [QUOTA]}, (S.PLACING, C.RESOURCE_LIMIT, False)),
    "refused by Pod Security": ({"pod": None, "events": [SECURITY]}, (S.FAILED, C.START_FAILED, True)),
    "no pod yet": ({"pod": None}, (S.PLACING, C.UNSCHEDULABLE, False)),
    "its pod was deleted and nothing is left": (
        {"pod": None, "job": BACKOFF},
        (S.FAILED, C.WORKER_LOST, False),
    ),
    "out of time, its pod deleted": ({"pod": None, "job": DEADLINE}, (S.FAILED, C.TIMEOUT, False)),
    "out of time, its pod killed": ({"pod": pod(ended(137)), "job": DEADLINE}, (S.FAILED, C.TIMEOUT, False)),
    "done just before its time was out": (
        {"pod": pod(ended(0, "Completed")), "job": DEADLINE},
        (S.ENDED, None, False),
    ),
    "its pod was deleted by force": (
        {"pod": pod(RUNNING), "pod_gone": True},
        (S.FAILED, C.WORKER_LOST, False),
    ),
    "images are pulled": (
        {"pod": pod(waiting("ContainerCreating"))},
        (S.STARTING, C.EXECUTOR_UNAVAILABLE, False),
    ),
    "it runs": ({"pod": pod(RUNNING, RUNNING, phase="Running")}, (S.RUNNING, None, False)),
    "it went well": ({"pod": pod(ended(0, "Completed"), RUNNING, phase="Running")}, (S.ENDED, None, False)),
    "it failed": ({"pod": pod(ended(7), RUNNING, phase="Running")}, (S.ENDED, None, False)),
    "it ended, then its pod was deleted": ({"pod": pod(ended(7)), "pod_gone": True}, (S.ENDED, None, False)),
}
