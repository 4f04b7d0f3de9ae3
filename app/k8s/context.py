"""What every tool run in the cluster works with; one per worker.

When a tool run reached which stage: where the time between a step and its first line goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.core.clock import parse_ts
from app.core.telemetry import TOOL_STAGE_SECONDS
from app.k8s.client import Cluster
from app.k8s.profile import Profiles
from app.k8s.spec import SYNC, TOOL, JobSettings
from app.k8s.watch import JobView, JobWatch
from app.storage.staging import Staging


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
