"""Which errors of the two drivers mean that the database is away, locked or full.

Those become `StorageError`: the caller waits and tries again, or answers 503. Everything else is a
mistake of ours (a missing table, a broken statement) and passes through.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, InterfaceError, NotSupportedError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import StorageError
from app.telemetry import STORAGE_ERRORS

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
"""SQLSTATE classes: connection, standby, a transaction that stood still, log-in, no such database, deadlock,
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
