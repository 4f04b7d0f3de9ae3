"""The runs of this process and their states; in memory, for as long as the process lives."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class RunStatus(StrEnum):
    """State of a run in this process."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it stood when it was asked for. COMPLETED means exit code 0."""

    run_id: str
    module_id: str
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    status: RunStatus = RunStatus.RUNNING
    exit_code: int | None = None
    error_message: str | None = None


class RunRegistry:
    """Knows every run that was created and not forgotten. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}

    def create_run(
        self, module_id: str, parameters: Mapping[str, Any] | None = None, run_id: str | None = None
    ) -> Run:
        """Note a new run, which is RUNNING from now on; without `run_id` it gets a new one.

        Raises:
            ValueError: there is a run of this id.
        """
        run = Run(run_id or str(uuid.uuid4()), module_id, dict(parameters or {}))
        with self._lock:
            if run.run_id in self._runs:
                raise ValueError(f"there is a run {run.run_id!r} already")
            self._runs[run.run_id] = run
        return run

    def update_run(
        self,
        run_id: str,
        status: RunStatus | None = None,
        exit_code: int | None = None,
        error_message: str | None = None,
    ) -> Run:
        """Change what is given and leave the rest; return the changed run.

        Raises:
            LookupError: there is no such run.
        """
        with self._lock:
            run = self._known(run_id)
            changed = replace(
                run,
                status=RunStatus(status) if status is not None else run.status,
                exit_code=exit_code if exit_code is not None else run.exit_code,
                error_message=error_message if error_message is not None else run.error_message,
            )
            self._runs[run_id] = changed
        return changed

    def get_run(self, run_id: str) -> Run:
        """Return a run; LookupError if there is none."""
        with self._lock:
            return self._known(run_id)

    def list_runs(self) -> list[Run]:
        """Return all runs, the oldest first."""
        with self._lock:
            return list(self._runs.values())

    def remove_run(self, run_id: str) -> None:
        """Forget a run, if there is one."""
        with self._lock:
            self._runs.pop(run_id, None)

    def _known(self, run_id: str) -> Run:
        try:
            return self._runs[run_id]
        except KeyError:
            raise LookupError(f"there is no run {run_id!r}") from None
