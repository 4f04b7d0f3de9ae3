"""From a URL to an engine: what each database needs set before it is used.

SQLite: WAL, `synchronous=NORMAL`, foreign keys, a busy timeout. SQLAlchemy's own BEGIN is switched off,
because it would be a plain one: two such transactions that first read and then write lock each other out.
PostgreSQL: asyncpg, which reads `postgresql://…` as libpq does (several hosts, sslmode, a socket folder as
host, service files), except for a few parameters that are dealt with here.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.core.private_files import private_database

BUSY_TIMEOUT_S = 15.0
"""How long a SQLite transaction waits for another process's."""
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 15.0
"""How long one PostgreSQL statement may take before the server counts as away."""
IDLE_S = 5.0
"""How long a PostgreSQL transaction may be idle: then its process is frozen or cut off, and the server
rolls it back, so that its locks delay no other process."""
LOCK_S = 10.0
"""How long a statement waits for a lock. Longer than `IDLE_S`: who waits for a frozen
process gets through."""

_IGNORED = frozenset(
    {
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        *("client_encoding", "gssencmode", "sslcompression", "sslsni", "load_balance_hosts"),
    },
)
_REFUSED = frozenset({"hostaddr", "channel_binding", "require_auth", "sslcrldir", "requirepeer"})


def dialect_of(url: str) -> str:
    """Return "sqlite" or "postgresql"; ValueError for any other URL."""
    scheme = url.partition(":")[0].partition("+")[0]
    if scheme == "sqlite":
        return scheme
    if scheme in {"postgresql", "postgres"}:
        return "postgresql"
    raise ValueError(f"DATABASE_URL begins with {scheme!r}: use sqlite:///path or postgresql://…")


def sqlite_path(url: str) -> Path:
    """Return the file of a SQLite URL; ValueError when it names none."""
    name = make_url(url).database
    if not name or name == ":memory:":
        raise ValueError("SQLite needs a file: use sqlite:///relative.db or sqlite:////absolute.db")
    return Path(name)


def sqlite_engine(url: str, *, pool_size: int) -> Engine:
    """Return an engine whose transactions begin as the caller says, with an explicit BEGIN."""
    with contextlib.suppress(OSError):  # SQLite says it better, when it connects
        private_database(sqlite_path(url))
    engine = create_engine(
        URL.create("sqlite", database=str(sqlite_path(url))),
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,  # what users send does not belong into a log
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def postgres_engine(url: str, *, pool_size: int, bounded: bool = True) -> AsyncEngine:
    """Return an engine whose pool drops connections that the server has closed before they are used.

    `bounded` ends statements, transactions and waits that take too long, also in the server itself (see
    `server_limits`).
    """
    arguments = asyncpg_arguments(url)
    limits = ""
    if bounded:
        limits = server_limits(arguments["dsn"])
    else:  # a migration takes as long as it takes
        arguments["command_timeout"] = None

    async def connect() -> Any:
        connection = await asyncpg.connect(**arguments)
        try:
            if limits:
                await connection.execute(limits)
        except BaseException:
            connection.terminate()
            raise
        return connection

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=COMMAND_TIMEOUT_S,
        hide_parameters=True,
        isolation_level="READ COMMITTED",
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def check(connection: Any, _record: Any, _proxy: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        if connection.driver_connection.is_closed():  # known without asking: the socket has said so
            raise InvalidatePoolError

    return engine


def server_limits(dsn: str) -> str:
    """Return the statements that bound locks and transactions, without those that the URL sets itself.

    Not parameters of the start-up message: PgBouncer refuses those that it doesn't know.
    """
    query = dict(parse_qsl(urlsplit(dsn).query))
    limits = {
        "idle_in_transaction_session_timeout": IDLE_S,
        "lock_timeout": LOCK_S,
        "statement_timeout": COMMAND_TIMEOUT_S,
    }
    asked = {*query, *query.get("options", "").replace("=", " ").replace("-c", " ").split()}
    return "; ".join(
        f"SET {name} = {limit * 1000:.0f}" for name, limit in limits.items() if name not in asked
    )


def asyncpg_arguments(url: str) -> dict[str, Any]:
    """Translate a libpq URL for `asyncpg.connect`, which would send what it doesn't know to the server."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if refused := _REFUSED & query.keys():
        raise ValueError(f"DATABASE_URL: {', '.join(sorted(refused))} is not supported; leave it out")
    timeout = float(query.pop("connect_timeout", "") or CONNECT_TIMEOUT_S)
    name = query.pop("fallback_application_name", "tailrun")
    query.setdefault("application_name", name)
    kept = {key: value for key, value in query.items() if key not in _IGNORED}
    dsn = urlunsplit(("postgresql", parts.netloc, parts.path, urlencode(kept), ""))
    return {"dsn": dsn, "timeout": timeout or None, "command_timeout": COMMAND_TIMEOUT_S}
