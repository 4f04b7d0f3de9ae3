"""Fixtures that every test may use: real servers, one of each per session, emptied per test."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support import reaper
from support.postgres_server import MigratedDatabases, PostgresServer, postgres_database
from support.servers import RedisServer

from app.db.engine import Database
from app.db.migrate import migrate

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of hundreds of processes compiles all of it anew
# A shell's `&` ignores Ctrl-C, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("shared machine", deadline=None)  # only the outcome of an example counts
settings.load_profile("shared machine")


def pytest_configure(config: pytest.Config) -> None:
    """Leave nothing behind, also when the tests are killed; each process of xdist has a reaper of its own."""
    reaper.start()


def pytest_unconfigure(config: pytest.Config) -> None:
    """See the reaper's work to its end."""
    reaper.stop()


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


@pytest.fixture(scope="session")
def postgres_template(postgres_base_url: str) -> Iterator[str]:
    """The name of a PostgreSQL database that has the tables and is empty, to be copied."""
    with postgres_database(postgres_base_url) as url:
        migrate(url)
        yield url.rsplit("/", 1)[1]


@pytest.fixture(scope="session")
def postgres_databases(postgres_base_url: str, postgres_template: str) -> Iterator[MigratedDatabases]:
    databases = MigratedDatabases(postgres_base_url, postgres_template)
    yield databases
    databases.close()


@pytest.fixture
def postgres_url(postgres_databases: MigratedDatabases) -> Iterator[str]:
    """A PostgreSQL database that has the tables and is empty."""
    with postgres_databases.lend() as url:
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file that has the tables and is empty, to be copied."""
    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(f"sqlite:///{file}")
    return file


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """A SQLite file that has the tables and is empty."""
    shutil.copy(sqlite_template, tmp_path / "tailrun.db")
    return f"sqlite:///{tmp_path / 'tailrun.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each of the two databases in turn, with its tables: a test that takes this runs twice."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.deep)])
def system_url(request: pytest.FixtureRequest) -> str:
    """The database of a whole system whose test takes long and asks little of it: PostgreSQL is deep."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


@pytest.fixture
def migrated_url(database_url: str) -> str:
    """The same, where it matters that the tables are there."""
    return database_url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Each of the two databases in turn, without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    with postgres_database(request.getfixturevalue("postgres_base_url")) as url:
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


@pytest.fixture(
    params=[pytest.param(1, id="briefly"), pytest.param(5, id="at length", marks=pytest.mark.deep)]
)
def effort(request: pytest.FixtureRequest) -> int:
    """What a test multiplies with how often it tries: few times in `make test`, many in `make test-deep`."""
    return request.param


@pytest.fixture(
    params=[turn if turn < 4 else pytest.param(turn, marks=pytest.mark.deep) for turn in range(20)]
)
def again(request: pytest.FixtureRequest) -> int:
    """The turn of a test that is done four times in `make test`, and twenty times in `make test-deep`."""
    return request.param


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio."""
    return "asyncio"
