"""How far the log of an ended run has gone, and the marker that stands for what is not in rows.

    written   rows 1 … n                                  (runs.log_stage NULL)
    packed    chunks 1 … n-1, a hidden marker, row n      ('packed')
    expired   a `truncated` marker for 1 … n-1, row n     ('expired')

Row n is the run's `end` and always stays. The marker is a `truncated` event at n-1 that begins at 1.
While the last chunk is there, a row at or before its end does not count (see `log_queries`): only a
release that knows no chunks sees the marker of a packed log.
"""

from __future__ import annotations

from typing import Any

from app.models import Event, EventType

PACKED, EXPIRED = "packed", "expired"


def marker_data(to: int, lines: int, size: int, reason: str, *, archived: bool = False) -> dict[str, Any]:
    """Return what a marker says of 1 to `to`; `archived`: the lines stand in the run's archive."""
    data: dict[str, Any] = {"from": 1, "to": to, "lines": lines, "bytes": size, "reason": reason}
    return data | {"archived": True} if archived else data


def is_expired(event: Event) -> bool:
    """Whether `event` stands for lines that expired."""
    return event.type is EventType.TRUNCATED and event.data.get("reason") == EXPIRED


def is_archived(event: Event) -> bool:
    """Whether `event` stands for expired lines that are in an archive."""
    return is_expired(event) and event.data.get("archived") is True
