"""Bring the database to this release's tables, also when several processes start at once.

The lock (SQLite: the write lock, PostgreSQL: an advisory lock) is held for the whole upgrade, which
is one transaction. A database that a newer release has migrated is left alone: migrations only expand,
so this release still works on it.

On PostgreSQL large indexes are built after it, while the previous release continues to write. A plain
CREATE INDEX blocks all writers until it is done, which on a table of millions of rows is longer than they
wait. So an index that `tables` marks with `postgresql_concurrently` is left out by its migration and built
here, on every `migrate` that finds it missing. A build that was interrupted leaves an invalid index behind,
which is dropped and built anew. Until then the release works, more slowly.

No lock is held between processes for these builds: a session's lock gets lost in a pooler, and a process
that waits for a lock in a statement would be waited for by the build itself. A process that sees another
one building waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Index, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.schema import CreateIndex, DropIndex

from app.core.errors import StorageError
from app.core.private_files import private_folder
from app.db.connect import BUSY_TIMEOUT_S, dialect_of, postgres_engine, sqlite_engine, sqlite_path
from app.db.engine import storage_errors
from app.db.tables import metadata

T = TypeVar("T")
_LOCK = 7_461_696
"""The advisory lock of migrations; any number that is used for nothing else."""


def migrate(url: str) -> None:
    """Make or upgrade the tables; makes the folder and file of SQLite. `StorageError` if unreachable."""
    if dialect_of(url) == "sqlite":
        private_folder(sqlite_path(url).parent)
    _run(url, _upgrade, begin="BEGIN IMMEDIATE")
    if dialect_of(url) == "postgresql":
        _run(url, _build_indexes, begin="")


def is_current(url: str) -> bool:
    """Whether the tables are those of this release or a newer one. `StorageError` if unreachable."""
    if dialect_of(url) == "sqlite" and not sqlite_path(url).exists():
        return False
    return _run(url, _is_current, begin="BEGIN")


def ensure_current(url: str) -> None:
    """Raise `StorageError`, which says what to do, unless `is_current`."""
    if not is_current(url):
        raise StorageError("the database is not migrated: run `tailrun migrate`")


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    if not _is_current(connection):
        command.upgrade(_config(connection), "head")


def _build_indexes(connection: Connection) -> None:
    connection = connection.execution_options(isolation_level="AUTOCOMMIT")
    if _found_and_head(connection)[0] in _known(connection):  # else a newer release may have dropped some
        build_missing(connection)


def _is_current(connection: Connection) -> bool:
    found, head = _found_and_head(connection)
    return found is not None and (found == head or found not in _known(connection))


def _found_and_head(connection: Connection) -> tuple[str | None, str | None]:
    found = MigrationContext.configure(connection).get_current_revision()
    return found, ScriptDirectory.from_config(_config(connection)).get_current_head()


def _known(connection: Connection) -> set[str]:
    script = ScriptDirectory.from_config(_config(connection))
    return {revision.revision for revision in script.walk_revisions()}


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _run(url: str, work: Callable[[Connection], T], *, begin: str) -> T:
    with storage_errors():
        if dialect_of(url) == "sqlite":
            return _run_sqlite(url, work, begin)
        with ThreadPoolExecutor(1) as thread:  # callers may be inside of an event loop
            return thread.submit(asyncio.run, _run_postgres(url, work)).result()


def _run_sqlite(url: str, work: Callable[[Connection], T], begin: str) -> T:
    engine = sqlite_engine(url, pool_size=1)
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    try:
        while True:
            try:
                with engine.begin() as connection:
                    connection.exec_driver_sql(begin)
                    return work(connection)
            except OperationalError as error:
                # Switching a new file to WAL needs it alone, and SQLite does not wait for that.
                if "locked" not in str(error.orig) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
    finally:
        engine.dispose()


async def _run_postgres(url: str, work: Callable[[Connection], T]) -> T:
    engine = postgres_engine(url, pool_size=1, bounded=False)
    try:
        async with engine.connect() as connection:
            result = await connection.run_sync(work)
            await connection.commit()
            return result
    finally:
        await engine.dispose()


_LOOK_EVERY_S = 0.1
_TRIES = 20
"""Builds of one process that may fail: two that begin in the same moment can cost one of them its own."""

_VALID = text(
    "SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
    " WHERE i.indisvalid"
    " AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'runs'::regclass)"
)
_BUILDING = text("SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database()")

log = structlog.get_logger()


def online_indexes() -> list[Index]:
    """Return the indexes that are built here."""
    every = (index for table in metadata.sorted_tables for index in table.indexes)
    return sorted((i for i in every if i.dialect_options["postgresql"]["concurrently"]), key=_name)


def build_missing(connection: Connection) -> None:
    """Build what is missing or invalid; `connection` commits by itself."""
    failed = 0
    while missing := _missing(connection):
        if connection.execute(_BUILDING).scalar_one():
            time.sleep(_LOOK_EVERY_S)
            continue
        try:
            _build(connection, missing[0])
        except DBAPIError as error:
            failed += 1
            if failed == _TRIES:
                raise
            log.warning("index is built again", index=missing[0].name, error=str(error.orig))
            time.sleep(_LOOK_EVERY_S)


def _missing(connection: Connection) -> list[Index]:
    valid = set(connection.execute(_VALID).scalars())
    return [index for index in online_indexes() if index.name not in valid]


def _build(connection: Connection, index: Index) -> None:
    connection.execute(DropIndex(index, if_exists=True))
    connection.execute(CreateIndex(index, if_not_exists=True))


def _name(index: Index) -> str:
    return str(index.name)
