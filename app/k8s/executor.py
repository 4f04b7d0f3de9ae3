"""Runs tools as Kubernetes Jobs. Implements `app.execution.executor.Executor`.

A Job outlives its worker: nothing here is killed when the worker ends or loses a run. The worker that
takes the run over finds the Job by its name and continues its log. The Job is deleted once the step's
result is committed; the reaper finds those that a dead worker left.

Asks the cluster at the worker's start whether it may do what it must, and names what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from random import Random

import structlog

from app.config import Settings
from app.core.errors import StorageError
from app.core.models import ResourceRequest
from app.execution.executor import CannotRun, ToolResult, ToolRun
from app.k8s.client import Cluster, ClusterAway, ClusterError
from app.k8s.launcher import JobContext
from app.k8s.login import NoCluster, find
from app.k8s.monitor import JobMonitor
from app.k8s.profile import Profiles
from app.k8s.spec import JobSettings, job_name
from app.k8s.watch import JobWatch
from app.storage.staging import Staging
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import LineSink
from tailrun.process.stop import StopToken

_GOODBYE_S = 5.0

log = structlog.get_logger()


class KubernetesExecutor:
    """The executor of a worker with a cluster. `start` first, `close` last."""

    reattaches = True

    def __init__(self, crew: JobContext) -> None:
        self._crew = crew
        self._watching = crew.watch.periodic()
        self._tidying: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """See that we may do what we must, and begin to watch.

        Raises:
            CannotRun: the cluster does not let us; the message lists what is missing.
        """
        await check_access(self._crew.cluster, self._crew.terms.namespace)
        for work in self._watching:
            work.start()

    async def run(self, tool: ToolRun, sink: LineSink, stop: StopToken) -> ToolResult:
        """Run `tool` to its end, or continue it."""
        if self._closed:
            raise RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, "The worker is shutting down.")
        return await JobMonitor(self._crew, tool, sink, stop).run()

    def has_program(self, program: str, wants: ResourceRequest) -> bool:
        """Whether the step's image has such a program, as far as that is known."""
        return self._crew.profiles.has_program(program, wants)

    async def on_committed(self, tool: ToolRun) -> None:
        """Delete the Job and its staged files, in the background."""
        task = asyncio.create_task(self._tidy(job_name(tool)))
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    async def remove(self, name: str) -> None:
        """Delete a Job, with its pod and its Secrets, and its staged files."""
        await self._crew.cluster.delete(f"{self._crew.terms.jobs}/{name}")
        await self._crew.staging.drop(name)

    def jobs(self) -> Mapping[str, str]:
        """Return the run's id of each Job that is there and not being deleted, by the Job's name."""
        return self._crew.watch.jobs()

    async def sweep(self, older_than_s: float) -> None:
        """Delete staged files that were not fetched."""
        await self._crew.staging.sweep(older_than_s)

    def heartbeat(self) -> None:
        """Do nothing: a Job does not depend on its worker."""

    async def close(self) -> None:
        """Close the connections to the cluster; Jobs keep running."""
        self._closed = True
        if self._tidying:
            await asyncio.wait(self._tidying, timeout=_GOODBYE_S)
        for task in (tasks := tuple(self._tidying)):
            task.cancel()
        await asyncio.gather(*tasks, *(work.stop() for work in self._watching), return_exceptions=True)
        await self._crew.cluster.close()

    async def _tidy(self, name: str) -> None:
        with contextlib.suppress(StorageError, ClusterError):  # the reaper comes by
            await self.remove(name)
            return
        log.warning("a Job was left to the reaper", job=name)


def open_executor(
    settings: Settings, staging: Staging, clock: Callable[[], int], jitter: Random
) -> KubernetesExecutor:
    """Return the executor that the settings describe.

    Raises:
        CannotRun: there is no cluster, or the settings make no sense.
    """
    kubernetes = settings.kubernetes
    try:
        login = find(kubernetes.kubeconfig, kubernetes.service_host, kubernetes.service_port)
        profiles = Profiles(kubernetes)
    except (NoCluster, ValueError) as error:
        raise CannotRun(str(error)) from error
    cluster = Cluster(login, jitter=jitter)
    namespace = kubernetes.namespace or login.namespace
    terms = JobSettings(
        namespace, settings.tools.cancel_grace_s, settings.runs.infrastructure_wait_s, kubernetes
    )
    watch = JobWatch(cluster, terms)
    return KubernetesExecutor(JobContext(cluster, watch, terms, profiles, staging, clock))


NEEDED = (
    ("batch", "jobs", "", ("create", "get", "list", "watch", "delete")),
    ("", "pods", "", ("list", "watch")),
    ("", "pods", "log", ("get",)),
    ("", "events", "", ("list", "watch")),
    ("", "secrets", "", ("create", "patch")),
)
"""API group, resource, subresource, verbs: all that the worker ever does."""


async def check_access(cluster: Cluster, namespace: str) -> None:
    """Ask for every verb.

    Raises:
        CannotRun: one of them is not allowed, or the cluster does not answer.
    """
    asked = [
        {"namespace": namespace, "verb": verb, "group": group, "resource": kind, "subresource": sub}
        for group, kind, sub, verbs in NEEDED
        for verb in verbs
    ]
    try:
        allowed = await asyncio.gather(*(_may(cluster, attributes) for attributes in asked))
    except (ClusterAway, ClusterError) as error:
        raise CannotRun(f"the cluster can't be asked what the worker may do: {error}") from error
    missing = [_named(attributes) for attributes, may in zip(asked, allowed, strict=True) if not may]
    if missing:
        raise CannotRun(
            f"The worker's service account lacks in namespace {namespace}: {', '.join(missing)}. "
            "Give it a Role with these verbs."
        )


def _named(attributes: dict[str, str]) -> str:
    sub = attributes["subresource"]
    return f"{attributes['verb']} {attributes['resource']}{'/' if sub else ''}{sub}"


async def _may(cluster: Cluster, attributes: dict[str, str]) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = await cluster.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    return bool((answer.get("status") or {}).get("allowed"))
