"""The objects of the fake cluster, with versions, watches and the oldest version still known."""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import orjson

Thing = dict


def now_text() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Objects:
    """Everything by (kind, name); every change has a version and wakes the watches."""

    def __init__(self) -> None:
        self.things: dict[tuple[str, str], Thing] = {}
        self.version = 1
        self.oldest = 0
        self._changes: list[tuple[int, str, str, Thing]] = []
        self._more = asyncio.Condition()

    def get(self, kind: str, name: str) -> Thing | None:
        return self.things.get((kind, name))

    def of(self, kind: str) -> list[Thing]:
        return [thing for (a_kind, _), thing in self.things.items() if a_kind == kind]

    async def add(self, kind: str, thing: Thing) -> Thing:
        about = thing["metadata"]
        about.setdefault("uid", str(uuid.uuid4()))
        about.setdefault("creationTimestamp", now_text())
        self.things[kind, about["name"]] = thing
        await self.changed(kind, "ADDED", thing)
        return thing

    async def remove(self, kind: str, name: str) -> None:
        thing = self.things.pop((kind, name), None)
        if thing is not None:
            await self.changed(kind, "DELETED", thing)

    async def changed(self, kind: str, change: str, thing: Thing) -> None:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        self._changes.append((self.version, kind, change, copy.deepcopy(thing)))
        async with self._more:
            self._more.notify_all()

    async def event(self, about: str, name: str, reason: str, message: str, *, warning: bool = True) -> None:
        await self.add(
            "events",
            {
                "metadata": {"name": f"{name}.{uuid.uuid4().hex[:12]}"},
                "involvedObject": {"kind": about, "name": name},
                "type": "Warning" if warning else "Normal",
                "reason": reason,
                "message": message,
                "count": 1,
            },
        )

    def forget_history(self) -> None:
        """Answer 410 to whoever wants to go on from before now."""
        self.oldest = self.version
        self._changes.clear()

    async def watch(self, kind: str, since: int, seconds: float) -> AsyncIterator[bytes]:
        until = asyncio.get_running_loop().time() + seconds
        at = since
        while True:
            if at < self.oldest:
                status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                yield orjson.dumps({"type": "ERROR", "object": status}) + b"\n"
                return
            for version, a_kind, change, thing in [entry for entry in self._changes if entry[0] > at]:
                at = version
                if a_kind == kind:
                    yield orjson.dumps({"type": change, "object": thing}) + b"\n"
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                return
            async with self._more:
                if not self._changes or self._changes[-1][0] <= at:
                    try:
                        await asyncio.wait_for(self._more.wait(), min(left, 0.5))
                    except TimeoutError:
                        mark = {"metadata": {"resourceVersion": str(max(at, self.oldest))}}
                        yield orjson.dumps({"type": "BOOKMARK", "object": mark}) + b"\n"
