"""What every tool run in the cluster works with; one per worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.k8s.client import Cluster
from app.k8s.profile import Profiles
from app.k8s.spec import Terms
from app.k8s.watch import Watch
from app.storage.staging import Staging


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take, in seconds: to find a node, to start, to send files back."""

    schedule_s: float
    start_s: float
    upload_s: float
    grace_s: float


@dataclass(frozen=True, slots=True)
class Crew:
    """The cluster, what is known of it, and the rules. `clock` is in microseconds since the epoch."""

    cluster: Cluster
    watch: Watch
    terms: Terms
    profiles: Profiles
    staging: Staging
    patience: Patience
    clock: Callable[[], int]
