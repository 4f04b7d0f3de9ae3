"""How a running `up` is found by the clients of this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Serving:
    """The address and login of a running `up`."""

    url: str
    token: str
    redis_url: str
    data_dir: str
    pid: int


def read_serving(folder: Path) -> Serving | None:
    """Return what the running `up` of this folder wrote, None if there is none or it is unreadable."""
    try:
        body: dict[str, Any] = json.loads((folder / "up.json").read_bytes())
        return Serving(**body)
    except (OSError, ValueError, TypeError):
        return None
