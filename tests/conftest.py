"""Fixtures that every test may use: real servers, one of each per session, emptied per test."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.postgres_server import PostgresServer, postgres_database
from support.servers import RedisServer

from app.db.engine import Database
from app.db.migrate import migrate

settings.register_profile("shared machine", deadline=None)  # only the outcome of an example counts
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), appendonly=False).start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A Redis that is empty; not to be killed (start one of your own for that)."""
    with shared_redis.client() as client:
        client.flushall()
    return shared_redis


@pytest.fixture(scope="session")
def postgres_base_url() -> Iterator[str]:
    server = PostgresServer().start()
    yield server.url
    server.close()


@pytest.fixture
def postgres_url(postgres_base_url: str) -> Iterator[str]:
    """A fresh, empty PostgreSQL database."""
    with postgres_database(postgres_base_url) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres_base_url: str) -> Iterator[str]:
    """The name of a database that has the tables and is empty, to be copied."""
    with postgres_database(postgres_base_url) as url:
        migrate(url)
        yield url.rsplit("/", 1)[1]


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file that has the tables and is empty, to be copied."""
    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(f"sqlite:///{file}")
    return file


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A fresh SQLite file."""
    return f"sqlite:///{tmp_path / 'tailrun.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each of the two databases in turn: a test that takes this runs twice."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Each of the two databases in turn, with its tables."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "tailrun.db")
        yield f"sqlite:///{tmp_path / 'tailrun.db'}"
        return
    base_url, template = map(request.getfixturevalue, ("postgres_base_url", "postgres_template"))
    with postgres_database(base_url, template) as url:
        yield url


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    """An open `Database` with its tables, on each of the two in turn."""
    db = Database(migrated_url)
    yield db
    await db.close()


@pytest.fixture(params=[pytest.param(20, id="soon"), pytest.param(1, id="in time", marks=pytest.mark.deep)])
def slack(request: pytest.FixtureRequest) -> float:
    """What a test multiplies a promised time with.

    `make test` may share a slow machine with others, so there it only tells "soon" from "never"; the
    promise itself is held by `make test-deep`.
    """
    return request.param


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio."""
    return "asyncio"
