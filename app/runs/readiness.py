"""Whether Redis and the database answer, and are as this release needs them: for the API and the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from app.core.errors import StorageError
from app.db.engine import Database
from app.db.migrate import ensure_current
from app.redis.clients import RedisClients
from app.redis.inspect import ServerReport

OK = "ok"
TIMEOUT_S = 2.0
"""How long a store may take to answer: a probe is impatient."""


class StoreCheck:
    """Asks both stores at the same time, each for at most `TIMEOUT_S`."""

    def __init__(self, database_url: str, db: Database, redis: RedisClients) -> None:
        self._database_url, self._db, self._redis = database_url, db, redis
        self._report = ServerReport(redis)
        self._migrated = False  # stays true once it was: nothing migrates down under a running process

    async def __call__(self) -> dict[str, str]:
        """Return `ok`, or what is wrong, of `database` and `redis`."""
        database, redis = await asyncio.gather(answered(self._database), answered(self._redis.ping))
        if redis == OK:
            await self.look_at_redis()
        return {"database": database, "redis": redis}

    async def look_at_redis(self) -> None:
        """Bring `remarks` up to date; asks at most once a minute."""
        await answered(self._report.remarks)

    @property
    def remarks(self) -> list[str]:
        """What is no reason to be not ready, but a person should know: settings of Redis."""
        return self._report.known

    async def _database(self) -> None:
        await self._db.ping()
        if not self._migrated:
            await asyncio.to_thread(ensure_current, self._database_url)
            self._migrated = True


async def answered(what: Callable[[], Awaitable[Any]]) -> str:
    """Await `what` for at most `TIMEOUT_S`; return `ok`, or why a store gave no answer."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await what()
    except TimeoutError:
        return f"no answer within {TIMEOUT_S:g} s"
    except StorageError as error:
        return str(error)
    return OK


def trouble(checks: dict[str, str]) -> str:
    """Say what is wrong by the answer of a check; empty when nothing is."""
    return "; ".join(f"{name}: {result}" for name, result in checks.items() if result != OK)
