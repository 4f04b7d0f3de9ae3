"""Counts the space of users' files now and then, under one leader, for who looks at the metrics."""

from __future__ import annotations

import time
from collections import Counter

from app.core.telemetry import WORKSPACE_BYTES
from app.storage.factory import usage
from app.storage.workspace import Workspaces

USAGE_LOOK_EVERY_S = 20.0
LARGEST = 20
"""Users that have a series of their own; all others are one together, or metrics grew with users."""


class UsageCount:
    """Sets `tailrun_workspace_bytes` every `every_s` seconds; run `look` under one leader."""

    def __init__(self, workspaces: Workspaces, every_s: float) -> None:
        self._workspaces, self._every_s = workspaces, every_s
        self._counted_at = float("-inf")

    async def look(self) -> None:
        """Count if it is time."""
        if time.monotonic() - self._counted_at >= self._every_s:
            show(await usage(self._workspaces))
            self._counted_at = time.monotonic()

    def idle(self) -> None:
        """Show nothing while another worker counts."""
        WORKSPACE_BYTES.clear()
        self._counted_at = float("-inf")


def show(found: Counter[str]) -> None:
    """Put the largest users, and all others together, into the metrics."""
    WORKSPACE_BYTES.clear()
    largest = found.most_common(LARGEST)
    for user, size in largest:
        WORKSPACE_BYTES.labels(user).set(size)
    WORKSPACE_BYTES.labels("(others)").set(found.total() - sum(size for _, size in largest))
