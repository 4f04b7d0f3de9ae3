"""Places in a worker where it kills itself, as a power cut would: what is committed stays, nothing else.

`FAILPOINT=sent:2` in the environment of a worker that calls `arm` first: SIGKILL the second time that a
call of the model was written down.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from app.agent.tools.router import ToolRouter
from app.db.call_store import CallStore

POINTS: dict[str, tuple[type[Any], str, bool]] = {
    "before_send": (CallStore, "send", False),
    "sent": (CallStore, "send", True),
    "reply_read": (CallStore, "settle", False),
    "answered": (CallStore, "settle", True),
    "tool_starts": (ToolRouter, "call", False),
    "tool_ended": (ToolRouter, "call", True),
}
"""Each point: a method, and whether after it."""


def arm() -> None:
    """Make the point of FAILPOINT deadly, if it is set."""
    name, _, count = os.environ.get("FAILPOINT", "").partition(":")
    if name:
        owner, method, after = POINTS[name]
        setattr(owner, method, _deadly(getattr(owner, method), int(count or 1), after=after))


def _deadly(real: Callable[..., Any], count: int, *, after: bool) -> Callable[..., Any]:
    left = count

    async def call(*args: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = await real(*args, **named)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call
