"""The API server: routes, versions, watches, logs, and the faults that a test has ordered."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING

from fake_cluster.http import Answer, Request, found, refusal

if TYPE_CHECKING:
    from fake_cluster.cluster import FakeCluster

_OBJECT = re.compile(r"/(?:api/v1|apis/batch/v1)/namespaces/tools/(\w+)(?:/([\w.-]+))?(?:/(log))?")


class Api:
    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster, self._objects = cluster, cluster.objects

    async def answer(self, request: Request) -> Answer:
        cluster = self._cluster
        cluster.requests.append(request)
        if request.headers.get("authorization") != f"Bearer {cluster.token}":
            return refusal(401, "Unauthorized")
        fault = next((fault for fault in cluster.faults if fault.matches(request)), None)
        if fault is not None and fault.answer is not None:
            return fault.answer()
        answer = await self._answer(request)
        if fault is not None and fault.after is not None:
            fault.after()
        if fault is not None and fault.cut_after is not None:
            answer.cut_after = fault.cut_after()
        return answer

    async def _answer(self, request: Request) -> Answer:
        if request.path.endswith("/selfsubjectaccessreviews"):
            return self._review(request.json()["spec"]["resourceAttributes"])
        match = _OBJECT.fullmatch(request.path)
        if match is None:
            return refusal(404, f"no route {request.path}")
        kind, name, log = match.groups()
        if log:
            return self._log(name, request.params)
        if request.method == "POST":
            return await self._create(kind, request)
        return self._list(kind, request.params) if name is None else self._one(kind, name, request.method)

    def _review(self, asked: dict[str, str]) -> Answer:
        name = "/".join(filter(None, (asked["resource"], asked["subresource"])))
        return found({"status": {"allowed": f"{asked['verb']} {name}" not in self._cluster.refused}}, 201)

    def _one(self, kind: str, name: str, method: str) -> Answer:
        thing = self._objects.get(kind, name)
        if thing is None:
            return refusal(404, f"{kind} {name} not found")
        if method == "DELETE":
            self._cluster.spawn(self._cluster.delete_job(thing))
        return found(thing)

    async def _create(self, kind: str, request: Request) -> Answer:
        thing = request.json()
        name = thing["metadata"]["name"]
        if self._objects.get(kind, name) is not None:
            return refusal(409, f"{kind} {name} already exists")
        if kind == "secrets":
            thing = self._cluster.admit(thing)
        await self._objects.add(kind, thing)
        if kind == "jobs":
            self._cluster.spawn(self._cluster.job_created(thing))
        return found(thing, 201)

    def _list(self, kind: str, params: dict[str, str]) -> Answer:
        if params.get("watch") == "true":
            seconds = float(params["timeoutSeconds"])
            return Answer(200, self._objects.watch(kind, int(params["resourceVersion"]), seconds))
        about = {"resourceVersion": str(self._objects.version)}
        return found({"metadata": about, "items": self._objects.of(kind)})

    def _log(self, name: str, params: dict[str, str]) -> Answer:
        pod = self._cluster.pods.get(name)
        if pod is None or self._objects.get("pods", name) is None:
            return refusal(404, f'pods "{name}" not found')
        if pod.tool is None and not pod.log.ended and not pod.log.lines:
            return refusal(400, 'container "tool" in pod is waiting to start: ContainerCreating')
        since = params.get("sinceTime")
        since_ns = 0 if since is None else int(datetime.fromisoformat(since).timestamp()) * 10**9
        return Answer(200, _text(pod.log.read(follow=params.get("follow") == "true", since_ns=since_ns)))


async def _text(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for piece in lines:
        yield piece
