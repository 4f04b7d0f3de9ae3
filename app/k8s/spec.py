"""The Job of one tool run, and its two Secrets: what is in them, and what is deliberately not.

Names and labels are hashes: they contain nothing that a user wrote. A name is the same whenever the
Job is made for the same step, so a worker that finds it can tell by its hash that it is the right one.
The addresses of the run's files go into a Secret that only `sync` mounts; the program's variables
into one that only the program sees. Neither a service account's token nor a credential of the store
ever enters the pod.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from app.config import KubernetesSettings
from app.core.names import path_with
from app.execution import environment
from app.execution.executor import ToolRun
from app.k8s.profile import Profile, amount
from app.storage.staging import Offer

MANAGED = {"app.kubernetes.io/managed-by": "tailrun", "app.kubernetes.io/component": "tool"}
SELECTOR = ",".join(f"{name}={value}" for name, value in MANAGED.items())
JOB, RUN, NETWORK = "tailrun/job", "tailrun/run", "tailrun/network"
"""Labels: the Job's name, a hash of the run's id, what the network policies go by."""
SPEC_HASH, RUN_ID = "tailrun/spec-hash", "tailrun/run-id"
"""Annotations."""

TOOL, SYNC = "tool", "sync"
"""Names of the two containers."""

_WORKSPACE, _SHARED, _PRIVATE, _TMP = "/workspace", "/tailrun", "/run/tailrun", "/tmp"  # noqa: S108 - the pod's
_USER = 10001
_SHARED_BYTES, _SYNC_TMP_MIB = "64Mi", 64
_SYNC_MEMORY, _SYNC_CPU = "256Mi", "500m"
_HASH_CHARS = 16
_USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TOOLBOX = ("python", "-I", "-m", "toolbox")
NODE_LOST_S = 60
"""How long a tool waits for a node that does not answer to come back; Kubernetes' own answer is 300 s."""


@dataclass(frozen=True, slots=True)
class JobSettings:
    """The settings of every Job of a deployment. Times in seconds.

    `store_wait_s`: how long the store may be away when a program has ended and its files wait.
    """

    namespace: str
    grace_s: float
    store_wait_s: float
    kubernetes: KubernetesSettings

    @property
    def start_budget_s(self) -> float:
        """How long a pod may take until its program runs."""
        return self.kubernetes.schedule_s + self.kubernetes.start_s

    @property
    def jobs(self) -> str:
        """Where the namespace's Jobs are."""
        return f"/apis/batch/v1/namespaces/{self.namespace}/jobs"

    @property
    def core(self) -> str:
        """Where everything else of the namespace is."""
        return f"/api/v1/namespaces/{self.namespace}"


def job_name(tool: ToolRun) -> str:
    """Return the Job's name: the same for every attempt that continues this run of the step."""
    return "tool-" + short_hash(tool.run_id, tool.step_id, str(tool.step_run))


def short_hash(*words: str) -> str:
    """Return a name's worth of a hash over `words`."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:_HASH_CHARS]


def spec_hash(tool: ToolRun) -> str:
    """Return a hash of what the user asked for; what the deployment adds may change with its next release."""
    source = None if tool.source is None else [tool.source.name, tool.source.text, tool.source.args]
    asked = [tool.run_id, tool.step_id, tool.step_run, tool.tool, tool.argv, source, tool.cwd]
    return hashlib.sha256(orjson.dumps([*asked, tool.wants])).hexdigest()


def limit_s(tool: ToolRun, profile: Profile) -> float | None:
    """Return the program's own time limit: the step's, else the tool's."""
    return profile.timeout_s if tool.timeout_s is None else tool.timeout_s


def job(tool: ToolRun, profile: Profile, terms: JobSettings) -> dict[str, Any]:
    """Return the Job for `tool`."""
    name = job_name(tool)
    labels = {
        **MANAGED,
        JOB: name,
        RUN: short_hash(tool.run_id),
        NETWORK: profile.network,
    }
    limit = limit_s(tool, profile)
    seconds = tool.run_timeout_s if limit is None else min(limit, tool.run_timeout_s)
    spec: dict[str, Any] = {
        "backoffLimit": 0,
        "completions": 1,
        "parallelism": 1,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
            ]
        },
        "activeDeadlineSeconds": int(
            seconds + terms.start_budget_s + terms.grace_s + terms.kubernetes.upload_s
        )
        + 1,
        "ttlSecondsAfterFinished": terms.kubernetes.ttl_s,
        "template": {"metadata": {"labels": labels}, "spec": _pod(tool, profile, terms, name)},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": terms.namespace,
            "labels": labels,
            "annotations": {SPEC_HASH: spec_hash(tool), RUN_ID: tool.run_id},
        },
        "spec": spec,
    }


def secret(job: Mapping[str, Any], name: str, values: Mapping[str, str]) -> dict[str, Any]:
    """Return a Secret that goes when its Job goes; `job` is as the API server answered."""
    about = job["metadata"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": about["name"], "uid": about["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "immutable": True,
        "metadata": {
            "name": name,
            "namespace": about["namespace"],
            "labels": {**MANAGED, JOB: about["name"]},
            # Not blocking: where that permission is enforced, it would need one more on the Job.
            "ownerReferences": [{**owner, "controller": False, "blockOwnerDeletion": False}],
        },
        "stringData": dict(values),
    }


def files_secret(job: str) -> str:
    """Return the name of the Secret with the addresses of the run's files."""
    return f"{job}-files"


def env_secret(job: str) -> str:
    """Return the name of the Secret with the program's variables."""
    return f"{job}-env"


def sync_json(offer: Offer) -> dict[str, str]:
    """Return the file that tells `sync` where the run's files are."""
    return {"sync.json": orjson.dumps(offer.sync_json()).decode()}


def source_files(tool: ToolRun) -> dict[str, bytes]:
    """Return what is unpacked outside of the workspace."""
    return {} if tool.source is None else {tool.source.name: tool.source.text.encode()}


def variables(tool: ToolRun, *, wrapped: bool) -> dict[str, str]:
    """Return the program's own variables, as they go into its Secret.

    The folders that its `PATH` asks for are in `TOOLBOX_PATH`: only the wrapper knows the image's own.
    Without it they come before the usual ones.
    """
    found = environment.variables(tool, _WORKSPACE, environment.Folders(_WORKSPACE, _TMP))
    asked = found.pop("PATH", None)
    path: dict[str, str] = {}
    if asked is not None:
        path = {"TOOLBOX_PATH": asked} if wrapped else {"PATH": path_with(asked, _USUAL_PATH)}
    return {"USER": TOOL, "LOGNAME": TOOL, **found, **path}


# -- the pod --------------------------------------------------------------------------------


def _pod(tool: ToolRun, profile: Profile, terms: JobSettings, name: str) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": int(terms.grace_s + terms.kubernetes.upload_s) + 1,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [_sync(terms, gate=not profile.wrapped)],
        "containers": [_tool(tool, profile, terms, name)],
        "volumes": [
            {"name": "workspace", "emptyDir": {"sizeLimit": terms.kubernetes.disk}},
            {"name": "shared", "emptyDir": {"sizeLimit": _SHARED_BYTES}},
            {"name": "tmp", "emptyDir": {"sizeLimit": terms.kubernetes.disk}},
            {"name": "sync-tmp", "emptyDir": {"sizeLimit": terms.kubernetes.disk}},
            {"name": "files", "secret": {"secretName": files_secret(name), "defaultMode": 0o440}},
        ],
    }
    pod["tolerations"] = [_tolerated(taint) for taint in ("not-ready", "unreachable")]
    if profile.runtime_class:
        pod["runtimeClassName"] = profile.runtime_class
    if terms.kubernetes.user_namespaces:
        pod["hostUsers"] = False
    if terms.kubernetes.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": terms.kubernetes.image_pull_secret}]
    return pod


def _tolerated(taint: str) -> dict[str, Any]:
    key = f"node.kubernetes.io/{taint}"
    return {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NODE_LOST_S}


def _sync(terms: JobSettings, *, gate: bool) -> dict[str, Any]:
    """The side-car that brings the files and takes them back; with `gate` the tool starts after it."""
    container: dict[str, Any] = {
        "name": SYNC,
        "image": terms.kubernetes.image,
        "restartPolicy": "Always",
        "command": [*_TOOLBOX, "sync"],
        "env": [
            {"name": "TMPDIR", "value": _TMP},
            {"name": "TOOLBOX_DOWNLOAD_S", "value": f"{terms.start_budget_s:g}"},
            {"name": "TOOLBOX_UPLOAD_S", "value": f"{terms.kubernetes.upload_s:g}"},
        ],
        "resources": _resources(_SYNC_CPU, _SYNC_MEMORY, terms.kubernetes.disk, cpu_request="50m"),
        "securityContext": _locked_down(),
        "volumeMounts": [
            {"name": "workspace", "mountPath": _WORKSPACE},
            {"name": "shared", "mountPath": _SHARED},
            {"name": "sync-tmp", "mountPath": _TMP},
            {"name": "files", "mountPath": _PRIVATE, "readOnly": True},
        ],
    }
    if gate:
        container["startupProbe"] = {
            "exec": {"command": [*_TOOLBOX, "ready"]},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": max(1, int(terms.start_budget_s)),
        }
    return container


def _tool(tool: ToolRun, profile: Profile, terms: JobSettings, name: str) -> dict[str, Any]:
    source = "" if tool.source is None else f"{_SHARED}/source/{tool.source.name}"
    command: Sequence[str] = tool.command(source, _WORKSPACE)
    env: list[dict[str, str]] = []
    if profile.wrapped:
        command = [*_TOOLBOX, "exec", "--", *command]
        env = [
            {"name": "TOOLBOX_WAIT", "value": f"{_SHARED}/ready"},
            {"name": "TOOLBOX_GRACE_S", "value": f"{terms.grace_s:g}"},
        ]
        limit = limit_s(tool, profile)
        if limit is not None:
            env.append({"name": "TOOLBOX_TIMEOUT_S", "value": f"{limit:g}"})
        if tool.cwd is not None:
            env.append({"name": "TOOLBOX_CWD", "value": tool.cwd})
    return {
        "name": TOOL,
        "image": profile.image,
        "command": [word.replace("$", "$$") for word in command],  # or $(NAME) would be expanded
        "workingDir": tool.cwd if tool.cwd is not None and not profile.wrapped else _WORKSPACE,
        "env": env,
        "envFrom": [{"secretRef": {"name": env_secret(name)}}],
        "resources": _resources(
            profile.cpu, profile.memory, terms.kubernetes.disk, cpu_request=terms.kubernetes.cpu_request
        ),
        "securityContext": _locked_down(),
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": "workspace", "mountPath": _WORKSPACE},
            {"name": "shared", "mountPath": _SHARED, "readOnly": True},
            {"name": "tmp", "mountPath": _TMP},
        ],
    }


def _resources(cpu: str, memory: str, disk: str, *, cpu_request: str) -> dict[str, Any]:
    """Of CPU less is asked for than may be used: it is shared, and a tool mostly waits. Never more."""
    limits = {"cpu": cpu, "memory": memory, "ephemeral-storage": disk}
    return {"limits": limits, "requests": {**limits, "cpu": min(cpu, cpu_request, key=amount)}}


def _locked_down() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
