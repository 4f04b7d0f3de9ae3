"""Tests on a real cluster. They need three variables and skip without them:

KUBECONFIG              a cluster where we may make namespaces
TAILRUN_TOOLBOX_IMAGE   the image with the toolbox, as the cluster's nodes know it
TAILRUN_POD_HOST        this machine's address as pods reach it

API and worker are processes of this machine; what is made in the cluster is in a namespace of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from pathlib import Path
from random import Random
from typing import Any

from support.stack import Stack, wait_for

from app.k8s.client import Absent, Cluster
from app.k8s.login import find

NEEDED = ("KUBECONFIG", "TAILRUN_TOOLBOX_IMAGE", "TAILRUN_POD_HOST")


class Place:
    """A namespace for tools, and Tailrun beside the cluster."""

    def __init__(self, folder: Path) -> None:
        self.namespace = f"tailrun-test-{secrets.token_hex(4)}"
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.create("/api/v1/namespaces", "v1", "Namespace", self.namespace, labels=labels)
        self.stack = _Stack(folder, self.namespace)

    def close(self) -> None:
        self.stack.close()
        self._do("delete", f"/api/v1/namespaces/{self.namespace}")

    def create(self, path: str, version: str, kind: str, name: str, **more: Any) -> None:
        about = {"name": name, "labels": more.pop("labels", {})}
        body = {"apiVersion": version, "kind": kind, "metadata": about, **more}
        self._do("create", path, body)

    def delete(self, path: str) -> None:
        self._do("delete", f"/api/v1/namespaces/{self.namespace}/{path}")

    def evict(self, pod: str) -> None:
        """Do to a pod what draining its node does."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        self._do("create", f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction", body)

    def all(self, kind: str) -> list[dict[str, Any]]:
        group = "apis/batch/v1" if kind == "jobs" else "api/v1"
        labels = {"labelSelector": "app.kubernetes.io/component=tool"}
        return self._do("get", f"/{group}/namespaces/{self.namespace}/{kind}", labels)["items"]

    def wait_nothing_left(self) -> None:
        kinds = ("jobs", "pods", "secrets")
        wait_for(lambda: not any(self.all(kind) for kind in kinds), "nothing to be left", 90)

    def _do(self, verb: str, *arguments: Any) -> Any:
        async def call() -> Any:
            cluster = Cluster(find(os.environ["KUBECONFIG"], None, None), jitter=Random(1))
            with contextlib.suppress(Absent):
                try:
                    return await getattr(cluster, verb)(*arguments)
                finally:
                    await cluster.close()

        return asyncio.run(call())


class _Stack(Stack):
    def __init__(self, folder: Path, namespace: str) -> None:
        self._namespace = namespace
        super().__init__(folder, f"sqlite:///{folder}/tailrun.db", LEASE_S="4")

    def _env(self, **more: str) -> dict[str, str]:
        return super()._env(
            HOST="0.0.0.0",
            TOOL_EXECUTOR="kubernetes",
            TOOL_NAMESPACE=self._namespace,
            TOOL_IMAGE=os.environ["TAILRUN_TOOLBOX_IMAGE"],
            TOOL_IMAGES_ALLOWED="*",
            TOOL_SYNC_URL=f"http://{os.environ['TAILRUN_POD_HOST']}:{self.port}",
            TOOL_CPU="250m",
            TOOL_MEMORY="256Mi",
            LOG_MAX_BYTES="50000000",
            WORKER_CONCURRENCY="20",
            **more,
        )
