"""One check of the stores, for the API and the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.api_server import changed, settings_for
from support.servers import RedisServer

from app.config import Settings
from app.db.engine import Database
from app.db.migrate import migrate
from app.redis.clients import RedisClients
from app.runs.readiness import OK, StoreCheck, answered, trouble


@pytest.fixture
async def settings(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> Settings:
    return settings_for(tmp_path / "data", redis_server.url, sqlite_url)


@pytest.fixture
async def check(settings: Settings) -> AsyncIterator[StoreCheck]:
    migrate(settings.data.effective_database_url)
    db, redis = Database(settings.data.effective_database_url), RedisClients.for_api(settings.redis)
    yield StoreCheck(settings.data.effective_database_url, db, redis)
    await db.close()
    await redis.close()


async def test_both_answer(check: StoreCheck) -> None:
    """Then there is no trouble."""
    checks = await check()
    assert checks == {"database": OK, "redis": OK}
    assert trouble(checks) == ""


async def test_each_says_what_is_wrong_with_it(settings: Settings, tmp_path: Path) -> None:
    """A database without tables answers, and is still not what this release needs."""
    url = f"sqlite:///{tmp_path}/empty.db"
    db = Database(url)
    redis = RedisClients.for_api(changed(settings, redis_url="redis://127.0.0.1:1").redis)
    checks = await StoreCheck(url, db, redis)()
    await db.close()
    await redis.close()
    assert "tailrun migrate" in checks["database"]
    assert checks["redis"] != OK
    assert trouble(checks) == f"database: {checks['database']}; redis: {checks['redis']}"


async def test_a_store_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe is impatient."""
    monkeypatch.setattr("app.runs.readiness.TIMEOUT_S", 0.01)
    assert await answered(lambda: asyncio.sleep(3600)) == "no answer within 0.01 s"
