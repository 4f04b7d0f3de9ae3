"""The fake cluster: what a test starts, breaks and asks. It lives in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import yaml

from fake_cluster.api import Api
from fake_cluster.faults import Fault
from fake_cluster.http import Request, serve
from fake_cluster.kubelet import Node, Pod
from fake_cluster.objects import Objects, Thing

TOKEN = "a-token"


class WithToken:
    """Implements `app.k8s.login.Login`: a token that stays."""

    namespace = "tools"

    def __init__(self, url: str) -> None:
        self.url = url

    async def load(self, configuration: Any) -> float:
        configuration.host = self.url
        configuration.api_key["BearerToken"] = f"Bearer {TOKEN}"
        return float("inf")

    def refused(self) -> None:
        pass


class FakeCluster:
    """`url` answers after `start`. Attributes may be changed between any two requests."""

    def __init__(self) -> None:
        self.objects, self.node = Objects(), Node()
        self.pods: dict[str, Pod] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.token = TOKEN
        self.refused: set[str] = set()
        self.quota: str | None = None
        self.policy: str | None = None
        self.clock: Callable[[], int] = time.time_ns
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._started = threading.Event()
        self.url = ""

    def start(self) -> FakeCluster:
        self._thread.start()
        assert self._started.wait(60)
        return self

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the cluster's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def kubeconfig(self, folder: Path) -> Path:
        """Write a kubeconfig whose token is read from a file, as in a pod."""
        (folder / "token").write_text(self.token)
        config = {
            "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x", "namespace": "tools"}}],
            "clusters": [{"name": "x", "cluster": {"server": self.url}}],
            "users": [{"name": "x", "user": {"tokenFile": str(folder / "token")}}],
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def of(self, kind: str) -> list[Thing]:
        return self.objects.of(kind)

    def pod_of(self, job: str) -> Pod:
        return next(pod for pod in self.pods.values() if pod.name.startswith(job))

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self.server = self._loop.run_until_complete(serve(Api(self).answer))
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        self._started.set()
        self._loop.run_forever()

    async def _end(self) -> None:
        for pod in list(self.pods.values()):
            if isinstance(pod, Pod):  # a test may put a mere log here
                pod.kill("Error")
        self.server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- controllers --------------------------------------------------------------------

    async def job_created(self, job: Thing) -> None:
        name = job["metadata"]["name"]
        refusal = self.quota or self.policy
        while refusal is not None:
            if not [e for e in self.of("events") if e["message"] == refusal]:
                await self.objects.event("Job", name, "FailedCreate", refusal)
            await asyncio.sleep(0.02)
            refusal = self.quota or self.policy
            if self.objects.get("jobs", name) is None:
                return
        template = job["spec"]["template"]
        pod = {
            "metadata": {
                "name": f"{name}-{uuid.uuid4().hex[:5]}",
                "labels": template["metadata"]["labels"],
                "ownerReferences": [{"kind": "Job", "name": name}],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        await self.objects.add("pods", pod)
        running = Pod(self.objects, self.node, pod, self._now)
        self.pods[pod["metadata"]["name"]] = running
        await running.run()
        failed = pod["status"].get("phase") != "Succeeded"
        if self.objects.get("jobs", name) is job:
            reason = {"type": "Failed", "reason": "BackoffLimitExceeded"} if failed else {"type": "Complete"}
            job.setdefault("status", {})["conditions"] = [{"status": "True", **reason}]
            await self.objects.changed("jobs", "MODIFIED", job)

    async def delete_job(self, job: Thing) -> None:
        """Foreground: what it owns goes first."""
        name = job["metadata"]["name"]
        if "deletionTimestamp" in job["metadata"]:
            return
        job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        await self.objects.changed("jobs", "MODIFIED", job)
        for pod in [pod for pod in self.of("pods") if pod["metadata"]["labels"].get("tailrun/job") == name]:
            await self.delete_pod(pod["metadata"]["name"])
        for secret in self.of("secrets"):
            if any(owner["name"] == name for owner in secret["metadata"].get("ownerReferences", [])):
                await self.objects.remove("secrets", secret["metadata"]["name"])
        await self.objects.remove("jobs", name)

    async def delete_pod(self, name: str, *, force: bool = False) -> None:
        running = self.pods.get(name)
        if running is not None and not force:
            await running.stop()
            while not running.log.ended:
                await asyncio.sleep(0.005)
            while running.sync is not None and running.sync.returncode is None:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.01)
        await self.objects.remove("pods", name)
        if running is not None and force:
            running.kill("Error")

    def _now(self) -> int:
        return self.clock()

    def admit(self, secret: Thing) -> Thing:
        data = {k: base64.b64encode(v.encode()).decode() for k, v in secret.pop("stringData", {}).items()}
        return {**secret, "data": {**secret.get("data", {}), **data}}
