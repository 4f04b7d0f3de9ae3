"""The meaning of a Job's and its pod's state: it waits, runs, has ended, or failed, and why.

Pure, and in one order of precedence, because a pod often shows several things at once (an evicted
one also has an exit code, an OOM kill also looks like a signal):

    evicted · side-car out of memory · tool out of memory · image · configuration · not schedulable ·
    quota · deadline · node lost · exit code

What may still mend (an image that is pulled again, a node that comes) is `waiting`, with the error
it will have been when the caller's patience ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from app.k8s.spec import SYNC, TOOL
from tailrun.process.errors import ErrorCode, RunFailure

Thing = Mapping[str, Any]

_IMAGE_FOR_GOOD = frozenset({"InvalidImageName", "ErrImageNeverPull", "SignatureValidationFailed"})
_IMAGE = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
    | {"InvalidImageName", "ErrImageNeverPull"}
)
_NO_SUCH_IMAGE = (
    *("not found", "manifest unknown", "unauthorized", "authentication required"),
    *("access denied", "authorization failed", "denied:", "invalid reference", "no match for platform"),
)
_CONFIG = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PostStartHookError"}
)
_CANNOT_START = frozenset({"StartError", "ContainerCannotRun"})
_NODE_GONE = frozenset({"DeletionByPodGC", "DeletionByTaintManager", "NodeLost"})
_EVICTED = frozenset({"Evicted", "Preempting", "NodeShutdown", "Shutdown", "Terminated"})
_NOT_ITS_FAULT = _NODE_GONE | {"Preempting", "PreemptionByScheduler", "NodeShutdown", "Shutdown"}
"""An eviction by the kubelet may be for the disk or memory that the program itself has used."""
_NO_ROOM = ("OutOf", "NodeAffinity", "UnexpectedAdmissionError", "NodePorts")
_POLICY = ("violates PodSecurity", "denied the request", "ValidatingAdmissionPolicy", "is invalid")
_CRASH_LOOP = "CrashLoopBackOff"


class State(Enum):
    """Where a tool run is."""

    PLACING = auto()
    """Without a node, or without a pod."""
    STARTING = auto()
    """On a node: images, volumes, files."""
    RUNNING = auto()
    ENDED = auto()
    """By itself, with an exit code."""
    FAILED = auto()
    """Ended from outside, or it never will start."""


@dataclass(frozen=True, slots=True)
class PodVerdict:
    """`why` and `code`: in FAILED what happened, in PLACING and STARTING what it waits for."""

    state: State
    code: ErrorCode | None = None
    why: str = ""
    exit_code: int | None = None
    final: bool = False
    """No other attempt can mend it."""
    away: bool = False
    """Its node was lost or taken away: nothing that the program did."""

    def failure(self) -> RunFailure:
        """Return the failure that this is, or would be without waiting any longer."""
        code = self.code or ErrorCode.EXECUTOR_UNAVAILABLE
        return RunFailure(
            code,
            self.why or "its pod did not start",
            exit_code=self.exit_code,
            retried=False if self.final else None,
            away=self.away,
        )


def judge(
    job: Thing | None, pod: Thing | None, events: Iterable[Thing], *, pod_gone: bool = False
) -> PodVerdict:
    """Return the verdict on a pod's state."""
    if pod is None:
        return _without_pod(job, events)
    status = pod["status"]
    tool = _state(status.get("containerStatuses"), TOOL)
    sync = _state(status.get("initContainerStatuses"), SYNC)
    ended = tool.get("terminated")
    return (
        _evicted(pod)
        or _out_of_memory(tool, sync)
        or _image(tool, sync)
        or _config(tool, sync)
        or _deadline(job, ended)
        or (_exit(ended) if ended else None)
        or _lost(pod, job, pod_gone=pod_gone)
        or _on_its_way(pod, tool)
    )


def silent_node(pod: Thing | None) -> str:
    """Return the node of a pod that runs there, if the cluster has not heard of that node; else nothing.

    The cluster then says of all its pods that they are not ready, though ours have no readiness probe.
    """
    if pod is None or pod["status"].get("phase") != "Running":
        return ""
    tool = _state(pod["status"].get("containerStatuses"), TOOL)
    ready = _condition(pod, "Ready")
    lost = ready is not None and ready.get("status") != "True" and "running" in tool
    waits = ready is not None and str(ready.get("reason") or "") in {"ContainersNotReady", "PodCompleted"}
    return str(pod["spec"].get("nodeName") or "") if lost and not waits else ""


def finished(pod: Thing | None, container: str) -> bool:
    """Whether one of the pod's containers has ended for good."""
    kind = "initContainerStatuses" if container == SYNC else "containerStatuses"
    return pod is not None and "terminated" in _state(pod["status"].get(kind), container)


def _state(statuses: Any, name: str) -> dict[str, Any]:
    """Return a container's state, with how it ended the last time as `last`."""
    for status in statuses or ():
        if status["name"] == name:
            last = (status.get("lastState") or {}).get("terminated")
            return {**(status.get("state") or {}), **({"last": last} if last else {})}
    return {}


def _evicted(pod: Thing) -> PodVerdict | None:
    status = pod["status"]
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    target = _condition(pod, "DisruptionTarget")
    if target is not None and target.get("status") == "True":
        reason, message = str(target.get("reason") or reason), str(target.get("message") or message)
        code = ErrorCode.WORKER_LOST if reason in _NODE_GONE else ErrorCode.EVICTED
        text = f"its pod was taken away ({reason}): {message}"
        return PodVerdict(State.FAILED, code, text, away=reason in _NOT_ITS_FAULT)
    if reason in _EVICTED:
        text = f"its pod was evicted ({reason}): {message}"
        return PodVerdict(State.FAILED, ErrorCode.EVICTED, text, away=reason in _NOT_ITS_FAULT)
    if reason in _NODE_GONE:
        text = f"its node is gone ({reason}): {message}"
        return PodVerdict(State.FAILED, ErrorCode.WORKER_LOST, text, away=True)
    if reason.startswith(_NO_ROOM):
        return PodVerdict(State.FAILED, ErrorCode.UNSCHEDULABLE, f"its node refused it ({reason}): {message}")
    return None


def _out_of_memory(tool: Thing, sync: Thing) -> PodVerdict | None:
    ended = tool.get("terminated")
    if (ended is None or ended.get("exitCode") != 0) and _oom(sync):
        why = "what moves its files ran out of memory"
        return PodVerdict(State.FAILED, ErrorCode.OOM_KILLED, why, exit_code=None)
    if ended and ended.get("reason") == "OOMKilled":
        why = "it used more memory than its limit and was killed"
        return PodVerdict(State.FAILED, ErrorCode.OOM_KILLED, why, exit_code=ended.get("exitCode"))
    return None


def _oom(state: Thing) -> bool:
    return any((state.get(key) or {}).get("reason") == "OOMKilled" for key in ("terminated", "last"))


def _image(*containers: Thing) -> PodVerdict | None:
    for state in containers:
        waiting = state.get("waiting") or {}
        reason, message = waiting.get("reason"), str(waiting.get("message") or "")
        if reason in _IMAGE:
            lower = message.lower()
            final = reason in _IMAGE_FOR_GOOD or any(words in lower for words in _NO_SUCH_IMAGE)
            why = f"its image can't be pulled ({reason}): {message}"
            state_now = State.FAILED if final else State.STARTING
            return PodVerdict(state_now, ErrorCode.IMAGE_PULL, why, final=final)
    return None


def _config(*containers: Thing) -> PodVerdict | None:
    for state in containers:
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        reason, message = waiting.get("reason"), str(waiting.get("message") or "")
        if reason in _CONFIG:
            mends = "secret" in message and "not found" in message  # ours is made right behind the Job
            why = f"its container can't be made ({reason}): {message}"
            return PodVerdict(
                State.STARTING if mends else State.FAILED, ErrorCode.START_FAILED, why, final=not mends
            )
        if ended.get("reason") in _CANNOT_START:
            why = f"its program could not be started: {ended.get('message') or ended['reason']}"
            return PodVerdict(State.FAILED, ErrorCode.START_FAILED, why, final=True)
        if reason == _CRASH_LOOP:
            last = (state.get("last") or {}).get("exitCode")
            why = f"what moves its files ends again and again (exit code {last})"
            return PodVerdict(State.FAILED, ErrorCode.EXECUTOR_UNAVAILABLE, why)
    return None


def _exit(ended: Thing) -> PodVerdict:
    return PodVerdict(State.ENDED, exit_code=int(ended.get("exitCode", 0)))


def _deadline(job: Thing | None, ended: Thing | None) -> PodVerdict | None:
    failed = None if job is None else _condition(job, "Failed")
    if failed is None or failed.get("reason") != "DeadlineExceeded" or (ended and ended.get("exitCode") == 0):
        return None
    return PodVerdict(State.FAILED, ErrorCode.TIMEOUT, "its Job's activeDeadlineSeconds are over")


def _lost(pod: Thing, job: Thing | None, *, pod_gone: bool) -> PodVerdict | None:
    if pod["status"].get("phase") == "Unknown":
        return PodVerdict(State.FAILED, ErrorCode.WORKER_LOST, "its node does not answer any more", away=True)
    if pod_gone or pod["status"].get("phase") == "Failed":
        return PodVerdict(State.FAILED, ErrorCode.WORKER_LOST, "its pod was deleted before it had ended")
    return None


def _on_its_way(pod: Thing, tool: Thing) -> PodVerdict:
    if "running" in tool:
        return PodVerdict(State.RUNNING)
    scheduled = _condition(pod, "PodScheduled")
    if not pod["spec"].get("nodeName") and (scheduled is None or scheduled.get("status") != "True"):
        message = (scheduled or {}).get("message") or "its pod has no node yet"
        return PodVerdict(State.PLACING, ErrorCode.UNSCHEDULABLE, str(message))
    return PodVerdict(State.STARTING, ErrorCode.EXECUTOR_UNAVAILABLE, "its pod takes too long to start")


def _without_pod(job: Thing | None, events: Iterable[Thing]) -> PodVerdict:
    if (late := _deadline(job, None)) is not None:
        return late
    refused = [event for event in events if event.get("reason") == "FailedCreate"]
    if not refused:
        failed = None if job is None else _condition(job, "Failed")
        if failed is not None:
            why = f"its pod was deleted before it had ended ({failed.get('reason')})"
            return PodVerdict(State.FAILED, ErrorCode.WORKER_LOST, why)
        return PodVerdict(State.PLACING, ErrorCode.UNSCHEDULABLE, "its Job has no pod yet")
    message = str(refused[-1].get("message") or "")
    if "exceeded quota" in message:
        return PodVerdict(
            State.PLACING, ErrorCode.RESOURCE_LIMIT, f"the namespace's quota is used up: {message}"
        )
    final = any(words in message for words in _POLICY)
    state = State.FAILED if final else State.PLACING
    return PodVerdict(state, ErrorCode.START_FAILED, f"its pod was refused: {message}", final=final)


def _condition(thing: Thing, kind: str) -> Thing | None:
    found = (c for c in thing["status"].get("conditions") or () if c.get("type") == kind)
    return next(found, None)
