"""Migrations: make what the code expects, once, also when several processes start together."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from support.stack import wait_for

from app.core.models import StepStatus
from app.db import migrate as migration
from app.db.engine import Database
from app.db.migrate import is_current, migrate, online_indexes
from app.db.run_store import RunStore
from app.db.tables import metadata

MIGRATE = """
import sys
from app.db.migrate import migrate
print("ready", flush=True)
sys.stdin.read()
migrate(sys.argv[1])
"""


def test_migrating_twice_is_the_same_as_once(empty_url: str) -> None:
    assert not is_current(empty_url)
    migrate(empty_url)
    assert is_current(empty_url)
    migrate(empty_url)
    assert is_current(empty_url)


async def test_migrate_works_inside_of_an_event_loop(empty_url: str) -> None:
    migrate(empty_url)
    assert is_current(empty_url)


def _is_comparable(_item: object, name: str | None, *_of: object) -> bool:
    """PostgreSQL tells an expression in words of its own."""
    return name != "runs_by_owner"


@pytest.mark.filterwarnings("ignore:.*expression-based index")
async def test_the_migrations_make_the_tables_of_the_code(database: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        options = {"compare_type": True, "include_object": _is_comparable}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    assert await database.read(differences) == []


def test_processes_that_start_together_migrate_once(empty_url: str) -> None:
    """All of them wait at the same line, then go."""
    command = [sys.executable, "-W", "error", "-c", MIGRATE, empty_url]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(4)]
    for process in started:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
    for process in started:
        assert process.stdin
        process.stdin.close()
        process.stdin = None
    results = [(process.communicate(timeout=60)[1], process.returncode) for process in started]
    assert results == [(b"", 0)] * 4
    assert is_current(empty_url)


def test_an_index_whose_build_was_interrupted_is_built_again(postgres_url: str) -> None:
    """A build beside the traffic that is killed leaves an index that is written to, and never read."""
    names = sorted(str(index.name) for index in online_indexes())
    migrate(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP INDEX runs_by_wait")
        connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'runs_by_owner'::regclass"
        )
        migrate(postgres_url)
        valid = "SELECT indexrelid::regclass::text FROM pg_index WHERE indisvalid"
        assert set(names) <= {name for (name,) in connection.execute(valid)}


def test_an_index_is_built_while_others_write(postgres_url: str) -> None:
    """A writer that holds its locks is waited for, and one that comes meanwhile is let through."""
    migrate(postgres_url)
    with ExitStack() as stack:
        writers = [stack.enter_context(psycopg.connect(postgres_url)) for _ in range(2)]
        writers[0].execute("DROP INDEX runs_by_wait")
        writers[0].commit()
        writers[0].execute("UPDATE runs SET error = NULL")
        building = stack.enter_context(ThreadPoolExecutor(1)).submit(migrate, postgres_url)
        wait_for(lambda: _is_being_built(postgres_url), "the build to begin")
        writers[1].execute("SET lock_timeout = '20s'")
        writers[1].execute("UPDATE runs SET error = NULL")
        writers[1].commit()
        assert not building.done()
        writers[0].commit()
        building.result(60)


def _is_being_built(url: str) -> bool:
    with psycopg.connect(url) as connection:
        return bool(connection.execute("SELECT 1 FROM pg_stat_progress_create_index").fetchall())


async def test_a_newer_release_has_been_here(database: Database, migrated_url: str) -> None:
    """During an upgrade the old release meets the new one's tables, and works on."""
    newer = text("UPDATE alembic_version SET version_num = '9999'")
    await database.write(lambda connection: connection.execute(newer))
    assert is_current(migrated_url)
    migrate(migrated_url)
    assert is_current(migrated_url)


OF_0007 = (
    """INSERT INTO runs (run_id, user_id, kind, status, spec, created_at, attempt, retries, redeliveries,
 max_attempts, timeout_s, log_lines, log_size, truncated, last_seq, labels)
 VALUES (:id, 'ann', 'steps', 'queued', '{"steps": []}', 1, 0, 0, 0, 3, 60.0, 0, 0, false, 2, '{}')""",
    """INSERT INTO steps (run_id, step_id, idx, tool, args, status, attempt, started_at)
 VALUES (:id, 's1', 0, 'shell', '{}', 'running', 1, 1)""",
)
"""What the release before the agent's rows writes."""


def _write_as_0007(connection: Connection, run_id: str) -> None:
    for statement in OF_0007:
        connection.execute(text(statement), {"id": run_id})


async def test_rows_from_before_the_agent_are_read(empty_url: str) -> None:
    """What was there before the upgrade, and what a process of the old release writes after it."""
    begin = "BEGIN IMMEDIATE" if empty_url.startswith("sqlite") else ""
    before = partial(migration._run, empty_url, begin=begin)
    before(lambda connection: command.upgrade(migration._config(connection), "0007"))
    before(lambda connection: _write_as_0007(connection, "old"))
    assert not is_current(empty_url)
    migrate(empty_url)
    db = Database(empty_url)
    await db.write(lambda connection: _write_as_0007(connection, "between"))
    for run_id in ("old", "between"):
        run = await RunStore(db).get(run_id)
        [step] = await RunStore(db).steps(run_id)
        assert run
        assert (run.agent, run.result, run.waiting_for) == (None, None, None)
        assert (run.spent_u, run.spent_tokens) == (0, 0)
        assert (step.status, step.call, step.for_model) == (StepStatus.RUNNING, None, None)
    assert len(await RunStore(db).claim(["old", "between"], "w1", 2)) == 2
    await db.close()


def test_the_folder_of_a_new_file_is_made(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a' / 'b' / 'tailrun.db'}"
    assert not is_current(url)
    migrate(url)
    assert is_current(url)


async def test_sqlite_is_set_up_for_several_processes(sqlite_url: str) -> None:
    migrate(sqlite_url)
    db = Database(sqlite_url)

    def pragmas(connection: Connection) -> dict[str, object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names}

    expected = {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 15_000}
    assert await db.read(pragmas) == expected
    assert await db.write(pragmas) == expected
    await db.close()
