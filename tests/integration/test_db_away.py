"""The database goes away and comes back: StorageError meanwhile, and no restart afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from support.postgres_server import PostgresServer
from support.run_rows import NOW, lines, new_run, running
from support.servers import free_port

from app.core.errors import StorageError
from app.db import connect, engine
from app.db.engine import Database
from app.db.migrate import is_current, migrate
from app.db.run_store import Batch, RunStore


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    own = PostgresServer().start()
    yield own
    own.close()


async def until_it_works(call: Callable[[], Awaitable[Any]]) -> Any:
    deadline = time.monotonic() + 60
    while True:
        try:
            return await call()
        except StorageError:
            assert time.monotonic() < deadline


async def test_a_restarted_postgresql_is_used_again(server: PostgresServer) -> None:
    """Idle connections that the server has closed are replaced before anybody meets them."""
    migrate(server.url)
    db = Database(server.url)
    store = RunStore(db)
    run, fence = await running(store)
    await asyncio.gather(*(db.ping() for _ in range(5)))
    server.stop()
    for call in (lambda: store.get(run.run_id), lambda: store.create(new_run(), NOW), db.ping):
        with pytest.raises(StorageError):
            await call()
    batch = Batch(events=lines(run.run_id, 3, 5))
    with pytest.raises(StorageError):
        await store.commit(fence, 2, batch)
    server.start()
    await until_it_works(lambda: store.commit(fence, 2, batch))
    await asyncio.gather(*(db.ping() for _ in range(10)))
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)
    await db.ping()
    assert (await store.heads([run.run_id]))[run.run_id][0] == 5
    await db.close()


async def test_a_frozen_postgresql_is_away_after_a_time(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "COMMAND_TIMEOUT_S", 0.3)
    db = Database(server.url + "?connect_timeout=1")
    await db.ping()
    server.freeze()
    for _ in range(2):
        with pytest.raises(StorageError):
            await db.ping()
    server.thaw()
    await until_it_works(db.ping)
    await db.close()


async def test_a_cancelled_caller_leaves_the_pool_usable(database: Database) -> None:
    store = RunStore(database)
    for _ in range(20):
        tasks = [asyncio.create_task(store.create(new_run(), NOW)) for _ in range(8)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(database.ping() for _ in range(10)))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@127.0.0.1:{port}/db",
        "postgres://u@/db?host=/nonexistent",
        "sqlite:////nonexistent/x/t.db",
    ],
)
async def test_a_database_that_was_never_there(url: str) -> None:
    db = Database(url.format(port=free_port()))
    with pytest.raises(StorageError):
        await db.ping()
    await db.close()


async def test_a_wrong_database_name_says_so(postgres_base_url: str) -> None:
    db = Database(postgres_base_url + "_not")
    with pytest.raises(StorageError, match="does not exist"):
        await db.ping()
    await db.close()


async def test_our_own_mistakes_pass_through(database: Database) -> None:
    with pytest.raises(DBAPIError):
        await database.read(lambda connection: connection.execute(text("SELECT * FROM nothing")))
    with pytest.raises(ZeroDivisionError):
        await database.write(lambda _: 1 // 0)
    await database.ping()


async def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    store = RunStore(database)
    run, _ = await running(store)

    def half(connection: Any) -> None:
        connection.execute(text("UPDATE runs SET last_seq = 99"))
        raise KeyError

    with pytest.raises(KeyError):
        await database.write(half)
    assert (await store.heads([run.run_id]))[run.run_id][0] == 2


async def test_a_locked_sqlite_file_is_a_storage_error(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds the write lock for longer than the busy timeout; readers are not disturbed."""
    monkeypatch.setattr(connect, "BUSY_TIMEOUT_S", 0.2)
    migrate(sqlite_url)
    db = Database(sqlite_url)
    other = connect.sqlite_engine(sqlite_url, pool_size=1)
    with other.connect() as holder:
        holder.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            await RunStore(db).create(new_run(), NOW)
        assert await RunStore(db).counts() == {}
        holder.exec_driver_sql("ROLLBACK")
    await RunStore(db).create(new_run(), NOW)
    other.dispose()
    await db.close()


async def test_nobody_waits_for_all_the_others_who_wait(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen process has the write lock: two or three find that out, the rest is told with them."""
    monkeypatch.setattr(connect, "BUSY_TIMEOUT_S", 0.5)
    migrate(sqlite_url)
    db = Database(sqlite_url)
    other = connect.sqlite_engine(sqlite_url, pool_size=1)
    with other.connect() as holder:
        holder.exec_driver_sql("BEGIN IMMEDIATE")
        asked = (RunStore(db).create(new_run(), NOW) for _ in range(20))
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(error, StorageError) for error in errors)
        assert 1 <= sum("locked" in str(error) for error in errors) <= 3
        holder.exec_driver_sql("ROLLBACK")
    await RunStore(db).create(new_run(), NOW)
    other.dispose()
    await db.close()


async def test_a_full_disk_is_a_storage_error(sqlite_url: str) -> None:
    """SQLite's own page limit stands for the disk's; once there is room again, writing goes on."""
    migrate(sqlite_url)
    db = Database(sqlite_url)
    store = RunStore(db)

    def limit(pages: int) -> Callable[[Any], Any]:
        return lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count={pages}").all()

    await db.write(limit(1))
    with pytest.raises(StorageError, match="full"):
        await store.create(new_run(spec={"prompt": "x" * 1_000_000}), NOW)
    await db.write(limit(1_000_000))
    await store.create(new_run(spec={"prompt": "x" * 1_000_000}), NOW)
    await db.close()


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "t.db"
    file.write_text("not a database at all, but long enough to be read as a header" * 20)
    with pytest.raises(StorageError):
        migrate(f"sqlite:///{file}")
    with contextlib.suppress(StorageError):
        assert not is_current(f"sqlite:///{file}")


async def test_the_lock_of_a_frozen_process_is_let_go(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands in the middle of a transaction; who waits for its lock gets through before it goes on."""
    monkeypatch.setattr(connect, "IDLE_S", 1)
    migrate(postgres_url)
    db = Database(postgres_url)
    run, _ = await running(RunStore(db))
    locked, thawed = threading.Event(), threading.Event()

    def stand(connection: Any) -> None:
        connection.execute(text("UPDATE runs SET log_lines = 7"))
        locked.set()
        thawed.wait(60)
        connection.execute(text("UPDATE runs SET log_lines = 8"))

    async def frozen() -> None:
        other = Database(postgres_url)
        with pytest.raises(StorageError):
            await other.write(stand)
        await other.ping()
        await other.close()

    freezing = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(frozen())))
    await asyncio.to_thread(locked.wait, 60)
    await RunStore(db).request_cancel(run.run_id, NOW)
    thawed.set()
    await freezing
    after = await RunStore(db).get(run.run_id)
    assert after
    assert (after.cancel_requested_at, after.log_lines) == (NOW, 0)
    await db.close()


async def test_a_lock_that_somebody_keeps_is_a_storage_error(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "LOCK_S", 0.2)
    migrate(postgres_url)
    db = Database(postgres_url)
    run, _ = await running(RunStore(db))
    with psycopg.connect(postgres_url) as holder:  # has no limits of ours
        holder.execute("SELECT * FROM runs FOR UPDATE")
        with pytest.raises(StorageError, match="lock timeout"):
            await RunStore(db).request_cancel(run.run_id, NOW)
    await RunStore(db).request_cancel(run.run_id, NOW)
    await db.close()


async def test_an_sqlite_file_that_takes_no_writes_is_named(
    unprivileged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers every read: a read-only disk, another user's file, a full disk."""
    file = unprivileged / "tailrun.db"
    migrate(f"sqlite:///{file}")
    db = Database(f"sqlite:///{file}")
    await db.check_writing()
    file.chmod(0o400)
    with pytest.raises(StorageError, match="can't be written"):
        await db.check_writing()
    file.chmod(0o600)
    monkeypatch.setattr(engine, "free_disk", lambda _folder: 4096)
    with pytest.raises(StorageError, match="4096 bytes are free"):
        await db.check_writing()
    await db.close()


async def test_a_postgresql_that_takes_no_writes_is_named(server: PostgresServer) -> None:
    migrate(server.url)
    db = Database(server.url)
    await db.check_writing()
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")

    async def refused() -> bool:
        with contextlib.suppress(StorageError):
            await db.check_writing()
            return False
        return True

    deadline = time.monotonic() + 60
    while not await refused():
        assert time.monotonic() < deadline
    with pytest.raises(StorageError, match="default_transaction_read_only"):
        await db.check_writing()
    await db.close()
