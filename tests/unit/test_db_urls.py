"""Database URLs: what libpq understands is translated for asyncpg, the rest is refused in words."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from app.db.connect import asyncpg_arguments, dialect_of, server_limits, sqlite_path


@pytest.mark.parametrize(
    ("url", "dialect"),
    [
        ("sqlite:///x.db", "sqlite"),
        ("sqlite+aiosqlite:////tmp/x.db", "sqlite"),
        ("postgresql://h/db", "postgresql"),
        ("postgres://h/db", "postgresql"),
        ("postgresql+asyncpg://h/db", "postgresql"),
    ],
)
def test_the_scheme_names_the_dialect(url: str, dialect: str) -> None:
    assert dialect_of(url) == dialect


@pytest.mark.parametrize("url", ["mysql://h/db", "", "/tmp/x.db"])
def test_another_scheme_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///path"):
        dialect_of(url)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///"])
def test_sqlite_needs_a_file(url: str) -> None:
    """Two connections to memory would be two databases."""
    with pytest.raises(ValueError, match="needs a file"):
        sqlite_path(url)


def test_what_asyncpg_knows_is_passed_on() -> None:
    given = "postgres://u:p%40ss@a:1,b:2/db?sslmode=require&options=-csearch_path%3Dx&host=/run/pg"
    arguments = asyncpg_arguments(given)
    parts = urlsplit(arguments["dsn"])
    assert (parts.scheme, parts.netloc, parts.path) == ("postgresql", "u:p%40ss@a:1,b:2", "/db")
    assert parse_qs(parts.query) == {
        "sslmode": ["require"],
        "options": ["-csearch_path=x"],
        "host": ["/run/pg"],
        "application_name": ["tailrun"],
    }


def test_what_only_libpq_knows_is_translated_or_left_out() -> None:
    arguments = asyncpg_arguments(
        "postgresql://h/db?connect_timeout=7&keepalives=1&client_encoding=utf8&application_name=mine",
    )
    assert arguments["timeout"] == 7
    assert parse_qs(urlsplit(arguments["dsn"]).query) == {"application_name": ["mine"]}


@pytest.mark.parametrize("name", ["channel_binding", "hostaddr", "require_auth"])
def test_a_promise_that_asyncpg_cannot_keep_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        asyncpg_arguments(f"postgresql://h/db?{name}=x")


def test_the_server_bounds_what_a_frozen_process_could_hold() -> None:
    """A limit that the URL sets, in either way, is the user's."""
    dsn = "postgresql://h/db?statement_timeout=60s&options=-c%20lock_timeout%3D1s"
    assert server_limits(dsn) == "SET idle_in_transaction_session_timeout = 5000"
    assert server_limits("postgresql://h/db") == (
        "SET idle_in_transaction_session_timeout = 5000; "
        "SET lock_timeout = 10000; SET statement_timeout = 15000"
    )
