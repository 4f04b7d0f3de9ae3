"""Archives: the same answers as before retention, in both stores; hidden from users; damage is said."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.ended_runs import (
    LATER,
    any_log,
    ask,
    ended_run,
    expire_all,
    pack_all,
    plain_lines,
    read_all,
    to_keep,
)

from app.core.errors import NotFound, StorageError, Unprocessable
from app.core.events import Event, EventType
from app.core.log_filter import LogFilter
from app.core.models import Run
from app.db.engine import Database
from app.db.log_retention import LogUpkeep
from app.db.log_store import PACKED, LogStore
from app.db.run_store import RunStore
from app.maintenance.log_janitor import LogArchiver
from app.storage.log_archive import ARCHIVE_NAME, LogArchive, archive_bytes
from app.storage.workspace import Workspaces
from app.stream.history import LogHistory
from tailrun.process.lines import Level, Stream

QUESTIONS: list[dict[str, Any]] = [
    {"after": 0, "limit": 1000},
    {"after": 777, "limit": 3},
    {"after": 0, "limit": 1000, "level": Level.ERROR},
    {"after": 990, "limit": 50, "stream": Stream.STDERR, "q": "LINE 1"},
    {"after": 2998, "limit": 1000},
    {"after": 3002, "limit": 1000},
    {"after": 3003, "limit": 1000},
]


@pytest.fixture
async def database(sqlite_url: str, sqlite_template: Any) -> AsyncIterator[Database]:
    shutil.copy(sqlite_template, sqlite_url.removeprefix("sqlite:///"))
    db = Database(sqlite_url)
    yield db
    await db.close()


async def archived(database: Database, workspaces: Workspaces, run: Run, stage: str | None = None) -> None:
    upkeep = LogUpkeep(database)
    kept = await to_keep(upkeep, run, stage)
    assert await LogArchiver(LogStore(database), workspaces).archive(kept)
    await expire_all(upkeep, run, stage, archived=True)


@pytest.mark.parametrize("packed", [True, False])
async def test_an_archived_log_answers_as_it_did_before(
    database: Database, workspaces: Workspaces, packed: bool
) -> None:
    """Pages, filters, the last lines; also while its deletion is under way."""
    history = LogHistory(LogStore(database), RunStore(database), workspaces)
    upkeep = LogUpkeep(database)
    run = await ended_run(database, plain_lines(3000))

    async def answers() -> list[Any]:
        pages = [await ask(history, run.run_id, **question) for question in QUESTIONS]
        tails = [await history.tail_cursor(run.run_id, n) for n in (0, 1, 10, 2999, 3001)]
        return [pages, tails, await read_all(history, run.run_id, 700)]  # pyright: ignore[reportArgumentType]

    if packed:
        await pack_all(upkeep, run)
    before = await answers()
    kept = await to_keep(upkeep, run, PACKED if packed else None)
    assert await LogArchiver(LogStore(database), workspaces).archive(kept)
    while await upkeep.expire_next(kept, LATER, archived=True):
        assert await answers() == before
    assert await answers() == before
    assert len(await LogStore(database).page(run.run_id, 0, 1000)) == 2


async def test_what_was_deleted_in_part_is_not_archived_over(
    database: Database, workspaces: Workspaces
) -> None:
    """A janitor that takes up a killed one's work leaves the whole archive alone."""
    run = await ended_run(database, plain_lines(5000))
    upkeep, archiver = LogUpkeep(database), LogArchiver(LogStore(database), workspaces)
    kept = await to_keep(upkeep, run)
    assert await archiver.archive(kept)
    assert await upkeep.expire_next(kept, LATER, archived=True)
    assert not await archiver.archive(kept)
    await expire_all(upkeep, run, None)
    history = LogHistory(LogStore(database), RunStore(database), workspaces)
    assert len(await read_all(history, run.run_id)) == 5003  # pyright: ignore[reportArgumentType]


async def test_an_archive_is_none_of_the_runs_files(database: Database, workspaces: Workspaces) -> None:
    """Not listed, not served, not copied, not counted, not to be written; it goes with the run."""
    run = await ended_run(database, plain_lines(300))
    files = workspaces.open("ann", run.run_id)
    await files.write("kept.txt", b"x")
    await archived(database, workspaces, run)
    assert [file.path for file in await files.list()] == ["kept.txt"]
    for path in (f".tailrun/{ARCHIVE_NAME}", ".tailrun", "./.Tailrun/x", ".tailrun/../.tailrun/x"):
        for attempt in (files.stat, files.delete, lambda path: files.write(path, b"mine")):
            with pytest.raises(Unprocessable):
                await attempt(path)
    async with files.checkout() as checkout:
        (checkout.path / "more.txt").write_text("y")
    assert [change.path for change in checkout.changed] == ["more.txt"]
    other = workspaces.open("ann", "run-other")
    assert (await other.copy_from(files)).files == 2
    private = workspaces.private("ann", run.run_id)
    assert [file.path for file in await private.list()] == [ARCHIVE_NAME]
    assert await workspaces.private("ann", "run-other").list() == []
    await workspaces.delete_run("ann", run.run_id)
    assert await private.list() == []


async def test_an_archive_that_is_gone_leaves_the_marker(database: Database, workspaces: Workspaces) -> None:
    """The stream is then as without an archive: what is gone, and the end."""
    history = LogHistory(LogStore(database), RunStore(database), workspaces)
    run = await ended_run(database, plain_lines(300))
    await archived(database, workspaces, run)
    await workspaces.private("ann", run.run_id).delete(ARCHIVE_NAME)
    types = [event.type for event in await history.page(run.run_id, 0, 10)]
    assert types == [EventType.TRUNCATED, EventType.END]
    assert await history.tail_cursor(run.run_id, 5) == 0


async def test_damage_is_said(workspaces: Workspaces) -> None:
    private = workspaces.private("ann", "run-1")
    with pytest.raises(NotFound):
        await LogArchive.open(private)
    whole = b"".join([piece async for piece in archive_bytes(_pages(plain_lines(100)))])
    for damaged in (b"", b"short", whole[:-4], whole[100:-1] + b"?"):
        await private.write(ARCHIVE_NAME, damaged)
        with pytest.raises(StorageError, match="damaged"):
            await LogArchive.open(private)
    await private.write(ARCHIVE_NAME, b"\0" * 40 + whole[40:])
    with pytest.raises(StorageError, match="damaged"):
        await (await LogArchive.open(private)).page(0, 10, LogFilter())


async def test_a_long_index_is_read_whole(workspaces: Workspaces) -> None:
    """More frames than the first look at the end of the file holds."""
    private = workspaces.private("ann", "run-1")
    await private.write(ARCHIVE_NAME, archive_bytes(_pages(plain_lines(3000), size=1)))
    archive = await LogArchive.open(private)
    assert [event.seq for event in await archive.page(1500, 2, LogFilter())] == [1501, 1502]
    assert await archive.tail_cursor(3) == 2999


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd(1) is not here")
def test_zstd_reads_an_archive() -> None:
    """What people have on their machines shows the lines, and skips the index."""

    async def collect() -> bytes:
        return b"".join([piece async for piece in archive_bytes(_pages(plain_lines(700)))])

    whole = asyncio.run(collect())
    shown = subprocess.run(["zstd", "-dc"], input=whole, capture_output=True, check=True).stdout
    assert shown.splitlines() == [event.encode() for event in plain_lines(700)]


def test_any_log_comes_back_from_its_archive_line_by_line() -> None:
    """Through any zstd decompressor, as the wire shape."""

    @settings(max_examples=25, database=None, suppress_health_check=list(HealthCheck))
    @given(any_log, st.integers(1, 300))
    def hold(log: list[Event], size: int) -> None:
        async def collect() -> bytes:
            return b"".join([piece async for piece in archive_bytes(_pages(log, size))])

        whole = asyncio.run(collect())
        with zstandard.ZstdDecompressor().stream_reader(whole, read_across_frames=True) as reader:
            lines = reader.read().split(b"\n")[:-1]
        assert lines == [event.encode() for event in log]
        assert [Event.decode(line) for line in lines] == log

    hold()


async def _pages(events: list[Event], size: int = 200) -> AsyncIterator[list[Event]]:
    for at in range(0, len(events), size):
        yield events[at : at + size]
