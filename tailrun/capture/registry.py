"""The runs of this process and their states; in memory, for as long as the process lives."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class RunStatus(StrEnum):
    """State of a run in this process."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class Run:
    """A run. COMPLETED means exit code 0.

    Its attributes may be set, and the registry that holds it sets them too: it is one object. It may
    be awaited, for `await registry.create_run(run)`.
    """

    module_id: str
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    status: RunStatus = RunStatus.RUNNING
    exit_code: int | None = None
    error_message: str | None = None
    run_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def __await__(self) -> Generator[None, None, Run]:
        yield from ()
        return self


class RunRegistry:
    """Knows every run that was created and not forgotten. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}

    def create_run(
        self, run: Run | str, parameters: Mapping[str, Any] | None = None, run_id: str | None = None
    ) -> Run:
        """Note a new run: a `Run`, or the id of a module, which is RUNNING from now on.

        Without `run_id` it gets a new one.

        Raises:
            ValueError: there is a run of this id.
        """
        if not isinstance(run, Run):
            run = Run(run, dict(parameters or {}))
            run.run_id = run_id or run.run_id
        with self._lock:
            if run.run_id in self._runs:
                raise ValueError(f"there is a run {run.run_id!r} already")
            self._runs[run.run_id] = run
        return run

    def update_run(
        self,
        run: Run | str,
        status: RunStatus | None = None,
        exit_code: int | None = None,
        error_message: str | None = None,
    ) -> Run:
        """Change what is given and leave the rest; return the changed run.

        `run` is its id, or a `Run` whose attributes were set: that one is the run from now on.

        Raises:
            LookupError: there is no such run.
        """
        with self._lock:
            known = self._known(run.run_id if isinstance(run, Run) else run)
            if isinstance(run, Run):
                known = self._runs[run.run_id] = run
            if status is not None:
                known.status = RunStatus(status)
            if exit_code is not None:
                known.exit_code = exit_code
            if error_message is not None:
                known.error_message = error_message
        return known

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
