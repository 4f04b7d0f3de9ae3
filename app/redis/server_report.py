"""What a Redis server's own settings would cost: said in the log and on `/readyz`, stopping nothing.

Asks `INFO` only. A managed service that refuses it, or leaves out what is looked for, is
taken to know what it does.
"""

from __future__ import annotations

import time
from typing import Any

from app.redis.clients import RedisClients, RedisDown, guard

OLDEST = (6, 2)
_ASK_EVERY_S = 60.0


class ServerReport:
    """The remarks about one server, asked for at most once a minute."""

    def __init__(self, clients: RedisClients) -> None:
        self._redis: Any = clients.commands
        self._asked_at = float("-inf")
        self.known: list[str] = []
        """What the last answer was."""

    async def remarks(self) -> list[str]:
        """Return what a person should know; the last answer while Redis is away."""
        if time.monotonic() - self._asked_at >= _ASK_EVERY_S:
            try:
                with guard():
                    info = await self._redis.info()
            except RedisDown:
                return self.known
            self._asked_at = time.monotonic()
            self.known = remarks_on(info)
        return self.known


def remarks_on(info: dict[str, Any]) -> list[str]:
    """Judge a server by its `INFO`; what is not told is not judged."""
    found: list[str] = []
    version = str(info.get("redis_version", ""))
    if version and _number(version) < OLDEST:
        found.append(f"Redis {version} is older than 6.2, which the queue needs: claims will fail")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(
            f"Redis evicts keys when memory is short (maxmemory-policy {policy}): queued entries may vanish "
            "until the reconciler pushes them again. Set noeviction"
        )
    if info.get("aof_enabled", 1) == 0:
        found.append(
            "Redis keeps no append-only file: after a restart of Redis the queue is filled again from the "
            "database, lines not committed yet and dead letters are lost. Set appendonly yes"
        )
    return found


def _number(version: str) -> tuple[int, ...]:
    """Return a version's first two parts; one that cannot be read is new enough."""
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else OLDEST
