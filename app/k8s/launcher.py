"""Creates a tool's Job, or finds it: after any number of calls there is one.

    the first attempt         offer the files ──> create the Job ──> create its Secrets
    a later attempt           look for the Job; it is there: make sure that its Secrets are, too
                              it is not, and lines of it are known: it was lost

A Job whose Secrets are missing waits for them, so the next attempt finishes what a worker began that
died in between. Files are offered once: a second offer would take back what has come back.

`JobContext` is what all of a worker's tool runs share; `Stages` measures where the time between a step and
its first line went.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.core.clock import parse_ts
from app.core.errors import TailrunError
from app.core.names import check_env
from app.core.telemetry import TOOL_STAGE_SECONDS
from app.execution.executor import ToolRun
from app.k8s import spec
from app.k8s.client import (
    Absent,
    Cluster,
    ClusterAway,
    ClusterError,
    Exists,
    InvalidObject,
    RequestRefused,
    TooMuch,
)
from app.k8s.profile import Profile, Profiles
from app.k8s.spec import SYNC, TOOL, JobSettings
from app.k8s.watch import JobView, JobWatch
from app.storage.staging import Offer, Staging
from tailrun.process.errors import ErrorCode, RunFailure


@dataclass(frozen=True, slots=True)
class JobContext:
    """The cluster, what is known of it, and the rules. `clock` is in microseconds since the epoch."""

    cluster: Cluster
    watch: JobWatch
    terms: JobSettings
    profiles: Profiles
    staging: Staging
    clock: Callable[[], int]


ORDER = ("created", "scheduled", "pulled", "synced", "first_line", "ended")


class Stages:
    """Times in microseconds since the epoch, as this worker saw them; `lines` counts what was printed."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.times: dict[str, int] = {}
        self.lines = 0
        self._asked_at = clock()

    @property
    def wall_s(self) -> float:
        """Seconds from the program's start to its end, as far as is known."""
        began = self.times.get("synced") or self.times.get("pulled")
        return 0.0 if began is None else max(0, self.times.get("ended", self._clock()) - began) / 1_000_000

    def created(self, job: dict[str, Any], *, found: bool) -> None:
        """Record that the Job exists; one that was found has its own creation time."""
        created = job["metadata"].get("creationTimestamp")
        if found and created:
            self.times["created"] = parse_ts(created)
        else:
            self._reached("created")

    def look(self, view: JobView) -> None:
        """Take from the pod's state what it has reached."""
        if view.pod is None:
            return
        if view.pod["spec"].get("nodeName"):
            self._reached("scheduled")
        states = {
            status["name"]: status.get("state") or {}
            for kind in ("initContainerStatuses", "containerStatuses")
            for status in view.pod["status"].get(kind) or ()
        }
        if any("running" in states.get(name, {}) for name in (SYNC, TOOL)):
            self._reached("pulled")

    def synced(self) -> None:
        """The run's files are in the pod."""
        self._reached("synced")

    def printed(self, lines: int) -> None:
        self.lines += lines
        self._reached("first_line")

    def ended(self) -> None:
        """The program has ended; count what each stage took."""
        self._reached("ended")
        before = self._asked_at
        for stage in ORDER:
            if stage in self.times:
                TOOL_STAGE_SECONDS.labels(stage).observe(max(0, self.times[stage] - before) / 1_000_000)
                before = self.times[stage]

    def _reached(self, stage: str) -> None:
        self.times.setdefault(stage, self._clock())


_OFFER_SLACK_S = 600.0


class JobLauncher:
    """Creates or finds the Job of one tool run. `found`: it was there already."""

    def __init__(self, crew: JobContext, tool: ToolRun, profile: Profile) -> None:
        self._crew, self._tool, self._profile = crew, tool, profile
        self.name = spec.job_name(tool)
        self.found = False

    async def place(self) -> dict[str, Any]:
        """Return the Job; its Secrets are there.

        Raises:
            RunFailure: the cluster does not take it, or it was there and is gone.
        """
        self._check()
        try:
            job = await self._earlier() if self._tool.attempt > 1 else None
            if job is None:
                offer = await self._offer()
                job = await self._create()
                await self._create_secrets(job, offer)
            elif not await self._has_secret(spec.files_secret(self.name)):
                await self._create_secrets(job, await self._offer())
            else:
                await self._create_env(job)
        except ClusterAway as error:
            raise RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, str(error), away=True) from error
        except ClusterError as error:
            raise _refused(error) from error
        return job

    async def _earlier(self) -> dict[str, Any] | None:
        """Return the Job that an earlier attempt made, if it did."""
        try:
            job = await self._crew.cluster.get(f"{self._crew.terms.jobs}/{self.name}")
        except Absent:
            if self._tool.cursor is None:
                return None
            raise RunFailure(ErrorCode.WORKER_LOST, "its Job is gone, though it had begun to print") from None
        return self._mine(job)

    async def _create(self) -> dict[str, Any]:
        body = spec.job(self._tool, self._profile, self._crew.terms)
        try:
            return await self._crew.cluster.create(self._crew.terms.jobs, body)
        except Exists:  # our own request, whose answer was lost
            return self._mine(await self._crew.cluster.get(f"{self._crew.terms.jobs}/{self.name}"))

    def _mine(self, job: dict[str, Any]) -> dict[str, Any]:
        about = job["metadata"]
        if (about.get("annotations") or {}).get(spec.SPEC_HASH) != spec.spec_hash(self._tool):
            raise RunFailure(
                ErrorCode.EXECUTOR_UNAVAILABLE, f"a Job {self.name} is there that is not its own"
            )
        if about.get("deletionTimestamp"):
            raise RunFailure(ErrorCode.WORKER_LOST, "its Job is being deleted")
        self.found = True
        return job

    async def _offer(self) -> Offer:
        terms = self._crew.terms
        seconds = self._tool.run_timeout_s + terms.start_budget_s + terms.kubernetes.upload_s
        source = spec.source_files(self._tool)
        return await self._crew.staging.offer(
            self.name, self._tool.workspace, source, lifetime_s=seconds + _OFFER_SLACK_S
        )

    async def _create_secrets(self, job: dict[str, Any], offer: Offer) -> None:
        files = spec.secret(job, spec.files_secret(self.name), spec.sync_json(offer))
        await asyncio.gather(self._create_env(job), self._create_secret(files))

    async def _create_env(self, job: dict[str, Any]) -> None:
        values = spec.variables(self._tool, wrapped=self._profile.wrapped)
        await self._create_secret(spec.secret(job, spec.env_secret(self.name), values))

    async def _create_secret(self, body: dict[str, Any]) -> None:
        with contextlib.suppress(Exists):
            await self._crew.cluster.create(f"{self._crew.terms.core}/secrets", body)

    async def _has_secret(self, name: str) -> bool:
        """Ask with a change of nothing: we may not read Secrets."""
        try:
            await self._crew.cluster.patch(f"{self._crew.terms.core}/secrets/{name}", {})
        except Absent:
            return False
        return True

    def _check(self) -> None:
        """Refuse what no pod can be given."""
        tool = self._tool
        words = tool.command("", "")
        trouble = ""
        if any("\0" in word for word in words):
            trouble = "An argument holds a NUL character."
        try:
            check_env(tool.env)
            "".join((*words, *tool.env.values())).encode()
        except TailrunError as error:
            trouble = error.message
        except UnicodeEncodeError:
            trouble = "An argument or a variable holds a lone surrogate, which no program can be given."
        if trouble:
            raise RunFailure(ErrorCode.START_FAILED, trouble, retried=False)


def _refused(error: ClusterError) -> RunFailure:
    """The API server's no, in the run's words."""
    if "exceeded quota" in error.message:
        return RunFailure(ErrorCode.RESOURCE_LIMIT, f"the namespace's quota is used up: {error.message}")
    if isinstance(error, TooMuch) or "too long" in error.message or "too large" in error.message.lower():
        text = f"The arguments and the environment of this program are too long: {error.message}"
        return RunFailure(ErrorCode.START_FAILED, text, retried=False)
    if isinstance(error, InvalidObject):
        text = f"The cluster does not take its Job: {error.message}"
        return RunFailure(ErrorCode.START_FAILED, text, retried=False)
    if isinstance(error, RequestRefused):
        return RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, f"the worker may not do this: {error.message}")
    return RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, f"the cluster refuses: {error}")
