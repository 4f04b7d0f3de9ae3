"""One `Database` per process: runs a function in a transaction, on SQLite or on PostgreSQL.

Stores write their transactions once, as plain functions of a SQLAlchemy `Connection`. On PostgreSQL
they run over asyncpg on the event loop. On SQLite a whole transaction is one call into a thread, where
the await per statement of an async driver would cost more than the statement; one thread writes,
always with BEGIN IMMEDIATE, and a few read.

Which errors of the two drivers mean that the database is away, locked or full.

Those become `StorageError`: the caller waits and tries again, or answers 503. Everything else is a
mistake of ours (a missing table, a broken statement) and passes through.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, InterfaceError, NotSupportedError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.core.errors import StorageError
from app.core.telemetry import STORAGE_ERRORS
from app.db import connect
from app.db.connect import dialect_of, postgres_engine, sqlite_engine, sqlite_path
from tailrun.process.host import free_disk

T = TypeVar("T")
Work = Callable[[Connection], T]


class _Backend(Protocol):
    async def run(self, work: Work[T], *, write: bool, single: bool) -> T: ...

    async def no_writing(self) -> str: ...

    async def close(self) -> None: ...


class Database:
    """A database by URL: `sqlite:///path`, or `postgresql://…` with what libpq understands.

    Nothing is opened before the first use. A lost connection, a locked file and a full disk are
    `StorageError`; the next call connects again.
    """

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self.dialect = dialect_of(url)
        sqlite = self.dialect == "sqlite"
        self._backend: _Backend = _Sqlite(url, pool_size) if sqlite else _Postgres(url, pool_size)

    async def read(self, work: Work[T]) -> T:
        """Run `work`, which only reads."""
        return await self._run(work, write=False, single=False)

    async def read_one(self, work: Work[T]) -> T:
        """Run `work`, which is one reading statement: one round trip."""
        return await self._run(work, write=False, single=True)

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction: committed when it returns, rolled back when it raises.

        `StorageError` leaves open whether it was committed: the reply may have been lost.
        """
        return await self._run(work, write=True, single=False)

    async def write_one(self, work: Work[T]) -> T:
        """Run `work`; on PostgreSQL it is one statement, which commits itself: one round trip."""
        return await self._run(work, write=True, single=True)

    async def ping(self) -> None:
        """Ask the database for a sign of life, and whether it takes writes; `StorageError` if not."""
        await self.read_one(lambda connection: connection.execute(text("SELECT 1")).scalar_one())
        await self.check_writing()

    async def check_writing(self) -> None:
        """Raise `StorageError`, with the reason, where it answers but takes no writes. Locks nothing."""
        with storage_errors():
            trouble = await self._backend.no_writing()
        if trouble:
            raise StorageError(f"the database takes no writes: {trouble}")

    async def close(self) -> None:
        """Close every connection."""
        await self._backend.close()

    async def _run(self, work: Work[T], *, write: bool, single: bool) -> T:
        with storage_errors():
            return await self._backend.run(work, write=write, single=single)


class _Sqlite:
    def __init__(self, url: str, pool_size: int) -> None:
        self._file = sqlite_path(url).absolute()
        self._engine = sqlite_engine(url, pool_size=pool_size + 1)
        self._writer = ThreadPoolExecutor(1, "sqlite-write")
        self._readers = ThreadPoolExecutor(pool_size, "sqlite-read")

    async def run(self, work: Work[T], *, write: bool, single: bool) -> T:
        threads = self._writer if write else self._readers
        begin = "BEGIN IMMEDIATE" if write else "BEGIN"
        loop, asked = asyncio.get_running_loop(), time.monotonic()
        return await loop.run_in_executor(threads, self._transaction, work, begin, asked)

    def _transaction(self, work: Work[T], begin: str, asked: float) -> T:
        if time.monotonic() - asked > connect.BUSY_TIMEOUT_S:  # else a frozen writer costs each its own wait
            raise StorageError(
                f"the database is busy: others have been writing for {connect.BUSY_TIMEOUT_S:g} s"
            )
        with self._engine.begin() as connection:
            connection.exec_driver_sql(begin)
            return work(connection)

    async def no_writing(self) -> str:
        return await asyncio.to_thread(self._no_writing)

    def _no_writing(self) -> str:
        """Ask the file, and not SQLite: that would wait behind everybody who writes."""
        for place in (self._file, self._file.parent):
            if not os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
                return f"{place} can't be written (read-only, or another user's)"
        free = free_disk(self._file.parent)
        return f"{free} bytes are free on its disk" if free is not None and free < _LEAST_FREE else ""

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        self._engine.dispose()


class _Postgres:
    def __init__(self, url: str, pool_size: int) -> None:
        self._engine = postgres_engine(url, pool_size=pool_size)
        self._single = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    async def run(self, work: Work[T], *, write: bool, single: bool) -> T:
        if single:
            async with self._single.connect() as connection:
                return await connection.run_sync(work)
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def no_writing(self) -> str:
        query = text("SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')")
        async with self._single.connect() as connection:
            standby, read_only = (await connection.execute(query)).one()
        if standby:
            return "it is a standby; is this the address of the primary?"
        return "default_transaction_read_only is on" if read_only == "on" else ""

    async def close(self) -> None:
        await self._engine.dispose()


_LEAST_FREE = 1_000_000
"""Bytes of disk below which SQLite's next transactions fail."""
_SQLITE_AWAY = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    },
)
_PRIMARY_CODE = 0xFF  # SQLite's extended codes keep the primary one in their low byte
_POSTGRES_AWAY = ("08", "25006", "25P03", "28", "3D", "40", "53", "55P03", "57", "58")
"""SQLSTATE classes: connection, standby, a transaction that was idle, log-in, no such database, deadlock,
full, lock, shutdown, I/O."""


@contextmanager
def storage_errors() -> Generator[None]:
    """Turn errors of an absent database into `StorageError`."""
    try:
        yield
    except DBAPIError as error:
        if _away(error):
            STORAGE_ERRORS.labels("database").inc()
            raise StorageError(f"the database: {error.orig}") from error
        raise
    except (OSError, TimeoutError, PoolTimeout) as error:
        STORAGE_ERRORS.labels("database").inc()
        raise StorageError(f"the database does not answer: {error or type(error).__name__}") from error


def _away(error: DBAPIError) -> bool:
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    if isinstance(error, NotSupportedError):  # asyncpg: a cached plan from before a migration
        return True
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return (code & _PRIMARY_CODE) in _SQLITE_AWAY
    return str(getattr(error.orig, "sqlstate", "") or "").startswith(_POSTGRES_AWAY)
