"""Indexes of PostgreSQL that are built while the previous release goes on writing.

A plain CREATE INDEX keeps all writers out until it is done, which on a table of millions of rows is longer
than they wait. So an index that `tables` marks with `postgresql_concurrently` is left out by its migration
and built here afterwards, on every `migrate` that finds it missing. A build that was interrupted leaves an
invalid index behind, which is dropped and built anew. Until then the release works, more slowly.

No lock is held between processes: a session's lock gets lost in a pooler, and who waits for a lock in
a statement would be waited for by the build itself. Whoever sees another one building waits.
"""

from __future__ import annotations

import time

import structlog
from sqlalchemy import Connection, Index, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, DropIndex

from app.db.tables import metadata

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
