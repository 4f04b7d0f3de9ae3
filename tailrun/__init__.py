"""What users import: a client of Tailrun's HTTP API, and long-running programs as a library.

from tailrun import Client

with Client("http://127.0.0.1:8080", token) as client:
    run = client.create(argv=["python", "-c", "print('hello')"])
    for event in client.stream(run["run_id"]):
        if event.type == "log":
            print(event.content)

The library runs programs inside of your own process, without a server: see `docs/library.md` and
`tailrun.capture`. Each name is imported when it is first used, so that a client does not load
what runs programs, nor the other way round.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailrun.async_client import AsyncClient
    from tailrun.capture.cancellation import CancellationToken, StopSignal
    from tailrun.capture.entries import LogEntry
    from tailrun.capture.execute import TaskNotStarted, execute_long_running_task
    from tailrun.capture.output_capture import OutputCapture
    from tailrun.capture.registry import Run, RunRegistry, RunStatus
    from tailrun.capture.resources import ResourceLimitException, ResourceManager
    from tailrun.client import Client
    from tailrun.errors import (
        APIError,
        Conflict,
        Forbidden,
        Invalid,
        NotFound,
        ServerError,
        TailrunError,
        TooLarge,
        TooManyRequests,
        Unauthorized,
        Unreachable,
        Unusable,
    )
    from tailrun.events import Event

VERSION = "0.1.0"
"""This release; pyproject.toml and CHANGELOG.md say the same."""

__all__ = [
    "VERSION",
    "APIError",
    "AsyncClient",
    "CancellationToken",
    "Client",
    "Conflict",
    "Event",
    "Forbidden",
    "Invalid",
    "LogEntry",
    "NotFound",
    "OutputCapture",
    "ResourceLimitException",
    "ResourceManager",
    "Run",
    "RunRegistry",
    "RunStatus",
    "ServerError",
    "StopSignal",
    "TailrunError",
    "TaskNotStarted",
    "TooLarge",
    "TooManyRequests",
    "Unauthorized",
    "Unreachable",
    "Unusable",
    "execute_long_running_task",
]

_HOME = {
    "AsyncClient": "async_client",
    "CancellationToken": "capture.cancellation",
    "Client": "client",
    "Event": "events",
    "LogEntry": "capture.entries",
    "OutputCapture": "capture.output_capture",
    "ResourceLimitException": "capture.resources",
    "ResourceManager": "capture.resources",
    "Run": "capture.registry",
    "RunRegistry": "capture.registry",
    "RunStatus": "capture.registry",
    "StopSignal": "capture.cancellation",
    "TaskNotStarted": "capture.execute",
    "execute_long_running_task": "capture.execute",
}
"""Where each name comes from; the others are errors of the client."""


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
