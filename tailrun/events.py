"""One entry of a run's stream, as a client sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

_OWN = frozenset(
    {"seq", "type", "ts", "run_id", "attempt", "level", "stream", "step", "content"},
)


@dataclass(frozen=True, slots=True)
class Event:
    """An event: its common fields, and in `data` whatever else this type has.

    `seq` counts from 1 within the run and is what `after` takes; `ts` is RFC 3339 in UTC.
    Fields and types that a newer server adds arrive here unharmed.
    """

    seq: int
    type: str
    ts: str
    run_id: str
    attempt: int
    level: str | None = None
    stream: str | None = None
    step: str | None = None
    content: str | None = None
    data: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, body: dict[str, Any]) -> Event:
        """Read the wire shape."""
        return cls(
            seq=body["seq"],
            type=body["type"],
            ts=body.get("ts", ""),
            run_id=body.get("run_id", ""),
            attempt=body.get("attempt", 0),
            level=body.get("level"),
            stream=body.get("stream"),
            step=body.get("step"),
            content=body.get("content"),
            data={name: value for name, value in body.items() if name not in _OWN},
        )

    @classmethod
    def parse(cls, text: str) -> Event:
        """Read the wire shape from its JSON."""
        return cls.of(json.loads(text))

    def as_dict(self) -> dict[str, Any]:
        """Return the wire shape again, absent fields left out."""
        own = {name: getattr(self, name) for name in ("seq", "type", "ts", "run_id", "attempt")}
        rest = {name: getattr(self, name) for name in ("level", "stream", "step", "content")}
        return own | {name: value for name, value in rest.items() if value is not None} | self.data
