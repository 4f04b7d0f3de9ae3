"""The cluster's state of our Jobs, kept up to date by one list and one watch a kind.

One worker asks three things of its namespace: Jobs, their pods, and the events about both. What
waits for a Job is woken by a change of it; nothing polls. 410 and every other break: list again, and
what is no longer in the list is gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from app.core.periodic import Periodic
from app.k8s.client import Cluster, ClusterAway, ClusterError
from app.k8s.spec import JOB, RUN_ID, SELECTOR, JobSettings

WATCH_S = 120
"""A watch is ended by the server after so many seconds, so that a dead one is noticed."""
_IDLE_S = WATCH_S + 30.0
_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_EVENTS_KEPT = 50
_BUFFER_BYTES = 16 << 20


@dataclass(slots=True)
class JobView:
    """The known state of one Job: its last object, its newest pod's, and events about both, by arrival.

    `job_gone`, `pod_gone`: it existed and was deleted; its last state stays.
    """

    name: str
    job: dict[str, Any] | None = None
    pod: dict[str, Any] | None = None
    job_gone: bool = False
    pod_gone: bool = False
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_EVENTS_KEPT))
    seen: set[str] = field(default_factory=set[str])
    listeners: set[Callable[[], None]] = field(default_factory=set[Callable[[], None]])

    def changed(self) -> None:
        """Call the listeners of this Job."""
        for listener in tuple(self.listeners):
            listener()

    def take_pod(self, pod: dict[str, Any], *, gone: bool) -> None:
        """Take the state of a pod; an older one than ours is a relict."""
        mine = self.pod
        other = mine is not None and pod["metadata"]["uid"] != mine["metadata"]["uid"]
        if mine is not None and other and (gone or _created(pod) < _created(mine)):
            return
        self.pod, self.pod_gone = pod, gone
        self.changed()

    def take_event(self, event: dict[str, Any]) -> None:
        """Take an event, once for each time that it was counted."""
        about = event["metadata"]
        key = f"{about.get('uid')}/{event.get('count')}"
        if key not in self.seen:
            self.seen.add(key)
            self.events.append(event)
            self.changed()


class JobWatch:
    """The views of all our Jobs; `periodic` keeps them, `view` hands one out."""

    def __init__(self, cluster: Cluster, terms: JobSettings) -> None:
        self._cluster, self._terms = cluster, terms
        self._views: dict[str, JobView] = {}
        self._kinds: Mapping[str, tuple[str, dict[str, str], Callable[..., None]]] = {
            "jobs": (terms.jobs, {"labelSelector": SELECTOR}, self._take_job),
            "pods": (f"{terms.core}/pods", {"labelSelector": SELECTOR}, self._take_pod),
            "events": (f"{terms.core}/events", {}, self._take_event),
        }
        self._listed = {kind: asyncio.Event() for kind in self._kinds}

    def periodic(self) -> list[Periodic]:
        """Return the work that keeps the views, by kind; each is asked again at once, or after a pause."""
        return [self._keeping(kind) for kind in self._kinds]

    async def ready(self) -> None:
        """Wait until everything was listed once."""
        for event in self._listed.values():
            await event.wait()

    def view(self, name: str) -> JobView:
        """Return the view of a Job, known or not yet."""
        if name not in self._views:
            self._views[name] = JobView(name)
        return self._views[name]

    def forget(self, name: str) -> None:
        """Drop a view without listeners whose Job is not there.

        Called by whatever may be the last to need it: the Job's end, its pod's, and a listener's.
        """
        view = self._views.get(name)
        if view is not None and not view.listeners and (view.job is None or view.job_gone):
            del self._views[name]

    def jobs(self) -> Mapping[str, str]:
        """Return the run's id of each Job that is there and not being deleted, by the Job's name."""
        found: dict[str, str] = {}
        for name, view in self._views.items():
            if view.job is not None and not view.job_gone and "deletionTimestamp" not in view.job["metadata"]:
                run_id = (view.job["metadata"].get("annotations") or {}).get(RUN_ID)
                found |= {name: run_id} if run_id else {}
        return found

    # -- list and watch -----------------------------------------------------------------

    def _keeping(self, kind: str) -> Periodic:
        version, failures = "", 0

        async def keep() -> None:
            nonlocal version, failures
            since, version = version, ""  # whatever goes wrong, it is listed again
            failures += 1
            try:
                if not since:
                    since = await self._list(kind)
                    self._listed[kind].set()
                version = await self._watch(kind, since)
            except ClusterError as error:
                raise ClusterAway(str(error)) from error
            failures = 0

        def pause_s() -> float:
            return _PAUSES_S[min(failures, len(_PAUSES_S)) - 1] if failures else 0.0

        return Periodic(f"watch {kind}", pause_s, keep, again_most_s=_PAUSES_S[-1])

    async def _list(self, kind: str) -> str:
        """List one kind; return the version to watch from."""
        path, params, take = self._kinds[kind]
        names: set[str] = set()
        page: dict[str, str | int] = {**params, "limit": 500}
        while True:
            found = await self._cluster.get(path, page)
            for item in found.get("items") or ():
                take(item, "ADDED")
                names.add(item["metadata"]["name"])
            about = found["metadata"]
            if kind == "events" or not about.get("continue"):
                break
            page["continue"] = about["continue"]
        if kind != "events":
            self._missing(kind, names)
        return str(about["resourceVersion"])

    def _missing(self, kind: str, names: set[str]) -> None:
        """Mark as deleted what was known and is not in the list."""
        for view in tuple(self._views.values()):
            known = view.job if kind == "jobs" else view.pod
            if known is not None and known["metadata"]["name"] not in names:
                self._kinds[kind][2](known, "DELETED")

    async def _watch(self, kind: str, version: str) -> str:
        """Watch from `version` to the end of the answer; return the version to continue from, "" to list."""
        path, params, take = self._kinds[kind]
        more: dict[str, str | int] = {
            **params,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": WATCH_S,
        }
        rest = bytearray()
        async with self._cluster.stream(path, idle_s=_IDLE_S, **more) as answer:
            async for piece in answer:
                rest += piece
                if len(rest) > _BUFFER_BYTES:
                    raise ClusterAway("a watch sent something endless")
                *lines, last = bytes(rest).split(b"\n") if b"\n" in piece else (bytes(rest),)
                if not lines:
                    continue
                rest = bytearray(last)
                for line in filter(None, lines):
                    change = orjson.loads(line)
                    if change["type"] == "ERROR":
                        return ""
                    version = change["object"]["metadata"]["resourceVersion"]
                    if change["type"] != "BOOKMARK":
                        take(change["object"], change["type"])
        return version

    # -- what came ----------------------------------------------------------------------

    def _take_job(self, job: dict[str, Any], change: str) -> None:
        view = self.view(job["metadata"]["name"])
        view.job, view.job_gone = _slim(job), change == "DELETED"
        view.changed()
        if view.job_gone:
            self.forget(view.name)

    def _take_pod(self, pod: dict[str, Any], change: str) -> None:
        name = (pod["metadata"].get("labels") or {}).get(JOB)
        gone = change == "DELETED"
        if name and (name in self._views or not gone):
            self.view(name).take_pod(_slim(pod), gone=gone)
            if gone:
                self.forget(name)

    def _take_event(self, event: dict[str, Any], change: str) -> None:
        about = event.get("involvedObject") or {}
        name = str(about.get("name", ""))
        if about.get("kind") == "Pod":
            name = name.rpartition("-")[0]
        if change != "DELETED" and name in self._views:
            self._views[name].take_event(event)


def _slim(thing: dict[str, Any]) -> dict[str, Any]:
    """Keep what is looked at: a pod's spec is known, and its managed fields are not used."""
    about = {key: value for key, value in thing["metadata"].items() if key != "managedFields"}
    spec = {"nodeName": (thing.get("spec") or {}).get("nodeName")}
    return {"metadata": about, "spec": spec, "status": thing.get("status") or {}}


def _created(thing: dict[str, Any]) -> str:
    return str(thing["metadata"].get("creationTimestamp", ""))
