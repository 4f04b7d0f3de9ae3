"""A node that really runs pods: containers are processes of this machine, volumes temporary folders."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_cluster.objects import Objects, Thing, now_text
from fake_cluster.pod_log import PodLog

_VARIABLE = re.compile(r"\$(\$|\((\w+)\))")
_POLL_S = 0.01


class Node:
    """What a test can tell the node to do differently, by pod or for all."""

    def __init__(self) -> None:
        self.pull_s = 0.0
        self.start_s = 0.0
        self.unschedulable = False
        self.images_missing: set[str] = set()
        self.sync_never_ready = False


class Pod:
    """One pod, from its node to its end."""

    def __init__(self, objects: Objects, node: Node, pod: Thing, clock: Callable[[], int]) -> None:
        self.objects, self.node, self.pod = objects, node, pod
        self.name = pod["metadata"]["name"]
        self.log = PodLog(clock)
        self.folder = Path(tempfile.mkdtemp(prefix="pod-"))
        self.tool: asyncio.subprocess.Process | None = None
        self.sync: asyncio.subprocess.Process | None = None
        self.killed_as: str | None = None
        self._stopping = False

    # -- life ---------------------------------------------------------------------------

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            self.log.end()
            for process in (self.tool, self.sync):
                if process is not None and process.returncode is None:
                    _signal(process, signal.SIGKILL)
                    await process.wait()
            await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    async def _run(self) -> None:
        spec = self.pod["spec"]
        while self.node.unschedulable and not self._stopping:
            if not self.pod["status"].get("conditions"):
                message = "0/3 nodes are available: 3 Insufficient cpu."
                await self._condition("PodScheduled", "False", "Unschedulable", message)
                await self.objects.event("Pod", self.name, "FailedScheduling", message)
            await asyncio.sleep(_POLL_S)
        spec["nodeName"] = "node1"
        await self._condition("PodScheduled", "True", "", "")
        files, env = await self._secret("files"), await self._secret("env")
        if not await self._pulled(spec["containers"][0]["image"]) or self._stopping:
            return
        await self._start_sync(spec["initContainers"][0], files)
        if not self._stopping:
            await self._run_tool(spec["containers"][0], env)
        await self._end_sync()
        if not self._stopping or self.objects.get("pods", self.name):
            code = self._status("containerStatuses").get("state", {}).get("terminated", {}).get("exitCode", 1)
            self.pod["status"]["phase"] = "Succeeded" if code == 0 else "Failed"
            await self._changed()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL after the grace period; returns when all is over."""
        self._stopping = True
        for process in (self.tool, self.sync if self.tool is None else None):
            if process is not None and process.returncode is None:
                _signal(process, signal.SIGTERM)
        grace_s = self.pod["spec"]["terminationGracePeriodSeconds"]
        for process in (self.tool, self.sync):
            if process is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), grace_s)
                _signal(process, signal.SIGKILL)

    def kill(self, reason: str) -> None:
        """Kill the tool's container as the kernel does for memory (`OOMKilled`)."""
        self.killed_as = reason
        if self.tool is not None:
            _signal(self.tool, signal.SIGKILL)

    # -- containers ---------------------------------------------------------------------

    async def _secret(self, which: str) -> dict[str, str]:
        job = self.pod["metadata"]["labels"]["tailrun/job"]
        while (secret := self.objects.get("secrets", f"{job}-{which}")) is None and not self._stopping:
            await asyncio.sleep(_POLL_S)
        return {
            key: base64.b64decode(value).decode() for key, value in (secret or {"data": {}})["data"].items()
        }

    async def _pulled(self, image: str) -> bool:
        await asyncio.sleep(self.node.pull_s)
        if image not in self.node.images_missing:
            return True
        for reason in ("ErrImagePull", "ImagePullBackOff"):
            waiting = {"reason": reason, "message": f"failed to pull {image}: not found"}
            await self._set("containerStatuses", "tool", {"waiting": waiting})
        return False

    async def _start_sync(self, container: Thing, files: dict[str, str]) -> None:
        secret = self.folder / "secret"
        secret.mkdir()
        for name, text in files.items():
            (secret / name).write_text(text)
        where = str(secret / "sync.json")
        self.sync = await self._start(container, {}, subprocess.DEVNULL, TOOLBOX_SECRET=where)
        await self._set("initContainerStatuses", "sync", {"running": {"startedAt": now_text()}}, started=True)
        if "startupProbe" in container:
            while not (self.folder / "shared/ready").exists() and not self._stopping:
                await asyncio.sleep(_POLL_S)

    async def _run_tool(self, container: Thing, env: dict[str, str]) -> None:
        await asyncio.sleep(self.node.start_s)
        try:
            self.tool = await self._start(container, env, subprocess.PIPE)
        except OSError as error:
            failed = {
                "exitCode": 128,
                "reason": "StartError",
                "message": f"exec: {error}",
                "finishedAt": now_text(),
            }
            await self._set("containerStatuses", "tool", {"terminated": failed})
            return
        started = now_text()
        await self._set("containerStatuses", "tool", {"running": {"startedAt": started}})
        if self._stopping:
            _signal(self.tool, signal.SIGTERM)
        assert self.tool.stdout is not None
        while data := await self.tool.stdout.read(1 << 16):
            self.log.write(data)
        code = await self.tool.wait()
        self.log.end()
        ended: Thing = {
            "exitCode": code if code >= 0 else 128 - code,
            "startedAt": started,
            "finishedAt": now_text(),
        }
        ended["reason"] = self.killed_as or ("Completed" if code == 0 else "Error")
        await self._set("containerStatuses", "tool", {"terminated": ended})

    async def _end_sync(self) -> None:
        if self.sync is None:
            return
        _signal(self.sync, signal.SIGTERM)
        code = await self.sync.wait()
        ended = {"exitCode": max(code, 0), "reason": "Completed" if code == 0 else "Error"}
        await self._set("initContainerStatuses", "sync", {"terminated": ended})

    async def _start(
        self, container: Thing, more: dict[str, str], stdout: int, **ours: str
    ) -> asyncio.subprocess.Process:
        for name in ("workspace", "shared", "tmp"):
            (self.folder / name).mkdir(exist_ok=True)
        given = {item["name"]: item["value"] for item in container.get("env", [])} | more
        env = {name: self._placed(value) for name, value in given.items()}
        env |= {"PATH": os.environ["PATH"], "TOOLBOX_CWD": str(self.folder / "workspace"), **ours}
        env.setdefault("TOOLBOX_WAIT", str(self.folder / "shared/ready"))
        command = [self._placed(_expanded(word, env)) for word in container["command"]]
        if command[0] == "python":
            command[0] = sys.executable
        return await asyncio.create_subprocess_exec(
            *command,
            env=env,
            cwd=self.folder / "workspace",
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT if stdout == subprocess.PIPE else subprocess.DEVNULL,
            start_new_session=True,
            limit=1 << 20,
        )

    def _placed(self, text: str) -> str:
        """Point a path of the pod into its folder."""
        places = {"/workspace": "workspace", "/tailrun": "shared", "/tmp": "tmp"}
        for path, name in places.items():
            if text == path or text.startswith(f"{path}/"):
                return f"{self.folder / name}{text.removeprefix(path)}"
        return text

    # -- status -------------------------------------------------------------------------

    def _status(self, kind: str) -> dict[str, Any]:
        return next(iter(self.pod["status"].get(kind) or [{}]))

    async def _set(self, kind: str, name: str, state: Thing, **more: Any) -> None:
        self.pod["status"][kind] = [{"name": name, "state": state, **more}]
        if "running" in state:
            self.pod["status"]["phase"] = "Running"
        await self._changed()

    async def _condition(self, kind: str, status: str, reason: str, message: str) -> None:
        condition = {"type": kind, "status": status, "reason": reason, "message": message}
        others = [c for c in self.pod["status"].get("conditions", []) if c["type"] != kind]
        self.pod["status"]["conditions"] = [*others, condition]
        await self._changed()

    async def _changed(self) -> None:
        if self.objects.get("pods", self.name) is not None:
            await self.objects.changed("pods", "MODIFIED", self.pod)


def _expanded(word: str, env: dict[str, str]) -> str:
    """Replace `$(NAME)` and `$$`, as Kubernetes does in commands."""

    def one(found: re.Match[str]) -> str:
        return "$" if found[1] == "$" else env.get(found[2], found[0])

    return _VARIABLE.sub(one, word)


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)  # a container's end takes all its processes
        else:
            process.send_signal(number)
