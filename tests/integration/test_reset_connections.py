"""A connection that was reset a moment ago, on uvloop as in both processes: away, not a mistake of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
from sqlalchemy import text
from support.servers import RedisServer

from app.core.errors import StorageError
from app.db.engine import Database
from app.redis.clients import RedisClients, RedisDown, guard


def on_uvloop(work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await work()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_redis(redis_server: RedisServer) -> None:
    async def work() -> None:
        clients = RedisClients(redis_server.url)
        pool: Any = clients.commands.connection_pool
        connection = await pool.get_connection()
        connection._writer.transport.abort()
        with pytest.raises(RedisDown), guard():
            await connection.send_command("PING")
        await pool.release(connection)
        await clients.ping()
        await clients.close()

    on_uvloop(work)


def test_postgresql(postgres_url: str) -> None:
    def cut(connection: Any) -> None:
        connection.connection.driver_connection._transport.abort()
        connection.execute(text("SELECT 1"))

    async def work() -> None:
        db = Database(postgres_url)
        for way in (db.read, db.write, db.read_one, db.write_one):
            with pytest.raises(StorageError):
                await way(cut)
            await db.ping()
        await db.close()

    on_uvloop(work)
