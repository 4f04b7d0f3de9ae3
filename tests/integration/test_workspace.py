"""What holds for the files of every workspace: one suite, run on a directory and on S3."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.s3_server import delete_bucket
from support.workspace_contents import LIMITS, content, paths, stream

from app.core.errors import Conflict, NotFound, StorageError, TailrunError, TooLarge, Unprocessable
from app.routes.files import etag
from app.storage.s3_workspace import S3Workspaces
from app.storage.workspace import FileInfo, Workspace, Workspaces


async def test_what_was_written_is_read_back(workspace: Workspace) -> None:
    info = await workspace.write("a//b/./c.txt", stream(b"one ", b"", b"two"))
    assert (info.path, info.size) == ("a/b/c.txt", 7)
    assert await workspace.stat("a/b/c.txt") == info
    assert await workspace.list() == [info]
    assert await content(workspace, "a/b/c.txt") == b"one two"


async def test_an_empty_file_is_a_file(workspace: Workspace) -> None:
    await workspace.write("empty", b"")
    assert (await workspace.stat("empty")).size == 0
    assert await content(workspace, "empty") == b""
    assert await content(workspace, "empty", 0, 0) == b""
    assert await content(workspace, "empty", 5, 9) == b""


async def test_a_file_is_replaced_whole(workspace: Workspace) -> None:
    await workspace.write("a", b"long long content")
    await workspace.write("a", b"short")
    assert await content(workspace, "a") == b"short"


async def test_two_contents_are_never_taken_for_one(workspace: Workspace) -> None:
    """Of one size, in one second: what a store says of its times is too coarse to tell them apart."""
    written = [await workspace.write("a", b"%03d" % n) for n in range(20)]
    assert len({etag(file) for file in written}) == 20
    assert etag(await workspace.stat("a")) == etag((await workspace.list())[0]) == etag(written[-1])


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 4, b"0123"), (3, 7, b"3456"), (8, None, b"89"), (8, 50, b"89"), (10, None, b""), (4, 4, b"")],
)
async def test_a_part_of_a_file_is_read(
    workspace: Workspace, start: int, end: int | None, expected: bytes
) -> None:
    await workspace.write("digits", b"0123456789")
    assert await content(workspace, "digits", start, end) == expected


async def test_a_large_file_comes_in_pieces(workspace: Workspace) -> None:
    data = bytes(range(256)) * 3600
    await workspace.write("big", data)
    pieces = [piece async for piece in workspace.read("big")]
    assert b"".join(pieces) == data
    assert max(len(piece) for piece in pieces) <= 256 * 1024


async def test_a_reader_may_leave_in_the_middle(workspace: Workspace) -> None:
    await workspace.write("big", b"x" * 900_000)
    reader = workspace.read("big")
    assert await anext(reader)
    await reader.aclose()  # type: ignore[attr-defined]
    await workspace.delete("big")


async def test_files_are_listed_by_path_and_prefix(workspace: Workspace) -> None:
    for path in ("b/2", "b/10", "a", "b.txt", "ä/ö", ".hidden"):
        await workspace.write(path, b"x")
    assert await paths(workspace) == [".hidden", "a", "b.txt", "b/10", "b/2", "ä/ö"]
    assert await paths(workspace, "b") == ["b.txt", "b/10", "b/2"]
    assert await paths(workspace, "b/") == ["b/10", "b/2"]
    assert await paths(workspace, "./b/1") == ["b/10"]
    assert await paths(workspace, "none/") == []


async def test_an_empty_workspace_lists_nothing_and_makes_nothing(
    workspace: Workspace, tmp_path: Path
) -> None:
    assert await workspace.list() == []
    assert not (tmp_path / "root" / "users").exists()


async def test_what_is_not_there_is_not_found(workspace: Workspace) -> None:
    await workspace.write("folder/file", b"x")
    for path in ("none", "folder", "folder/none", "folder/file/inside"):
        with pytest.raises(NotFound):
            await workspace.stat(path)
        with pytest.raises(NotFound):
            await content(workspace, path)
        with pytest.raises(NotFound):
            await content(workspace, path, 1, 1)
        with pytest.raises(NotFound):
            await workspace.delete(path)


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../other", "a/../../b", "a\0b", "a\\b", "a/"])
async def test_a_path_that_leaves_is_refused_by_every_method(workspace: Workspace, path: str) -> None:
    with pytest.raises(Unprocessable):
        await workspace.write(path, b"x")
    with pytest.raises(Unprocessable):
        await workspace.stat(path)
    with pytest.raises(Unprocessable):
        await content(workspace, path)
    with pytest.raises(Unprocessable):
        await workspace.delete(path)


async def test_a_deleted_file_is_gone(workspace: Workspace) -> None:
    await workspace.write("a/b", b"x")
    await workspace.delete("a/b")
    assert await workspace.list() == []
    with pytest.raises(NotFound):
        await workspace.delete("a/b")


async def test_a_name_is_a_file_or_a_folder_never_both(workspace: Workspace) -> None:
    await workspace.write("a/b/c", b"x")
    await workspace.write("f", b"x")
    for path in ("a", "a/b", "f/g", "f/g/h"):
        with pytest.raises(Conflict):
            await workspace.write(path, b"y")
    await workspace.delete("a/b/c")
    await workspace.write("a", b"now a file")
    assert await paths(workspace) == ["a", "f"]


async def test_runs_do_not_see_each_other(workspaces: Workspaces) -> None:
    one, ten = workspaces.open("ann", "run-1"), workspaces.open("ann", "run-10")
    await one.write("a", b"1")
    await ten.write("b", b"10")
    assert await paths(one) == ["a"]
    await workspaces.delete_run("ann", "run-1")
    assert await paths(one) == []
    assert await paths(ten) == ["b"]
    await workspaces.delete_run("ann", "run-1")


async def test_a_file_over_its_limit_leaves_nothing(workspace: Workspace) -> None:
    await workspace.write("a", b"old")
    for path in ("a", "new"):
        with pytest.raises(TooLarge, match=f"{path}: .*FILE_MAX_BYTES"):
            await workspace.write(path, stream(b"x" * 600_000, b"x" * 600_000))
    assert await paths(workspace) == ["a"]
    assert await content(workspace, "a") == b"old"
    await workspace.write("exact", b"x" * LIMITS.file_bytes)


async def test_an_endless_body_is_cut_off_at_the_limit(workspace: Workspace) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100_000
            yield b"x" * 100_000

    with pytest.raises(TooLarge):
        await workspace.write("a", endless())
    assert sent < LIMITS.file_bytes + 600_000


async def test_all_files_together_have_a_limit(workspace: Workspace) -> None:
    await workspace.write("a", b"x" * 1_000_000)
    await workspace.write("b", b"x" * 1_000_000)
    with pytest.raises(TooLarge, match="WORKSPACE_MAX_BYTES"):
        await workspace.write("c", b"x" * 500_001)
    await workspace.write("c", b"x" * 500_000)
    await workspace.write("a", b"x" * 1_000_000)  # replacing needs no more room
    await workspace.delete("b")
    await workspace.write("d", b"x" * 1_000_000)


async def test_the_number_of_files_has_a_limit(workspace: Workspace) -> None:
    for n in range(LIMITS.files):
        await workspace.write(f"f{n}", b"")
    with pytest.raises(TooLarge, match="WORKSPACE_MAX_FILES"):
        await workspace.write("more", b"")
    await workspace.write("f0", b"replaced")


async def test_a_body_that_breaks_off_leaves_nothing(workspace: Workspace) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 300_000
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await workspace.write("a", broken())
    assert await workspace.list() == []


async def test_a_cancelled_write_leaves_nothing(workspace: Workspace) -> None:
    started = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * 300_000
        started.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(workspace.write("a", slow()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await workspace.list() == []


async def test_of_two_writers_one_wins_whole(workspace: Workspace) -> None:
    for _ in range(20):
        one, two = b"1" * 400_000, b"2" * 300_000
        await asyncio.gather(workspace.write("a", stream(one)), workspace.write("a", stream(two)))
        assert await content(workspace, "a") in {one, two}


async def test_files_deleted_during_a_list_do_no_harm(workspace: Workspace) -> None:
    for _ in range(20):
        for n in range(10):
            await workspace.write(f"d{n % 3}/f{n}", b"x")
        listed, *_ = await asyncio.gather(
            workspace.list(), *(workspace.delete(f"d{n % 3}/f{n}") for n in range(10))
        )
        assert {file.size for file in listed} <= {1}
    assert await workspace.list() == []


async def test_a_run_can_start_with_a_copy_of_another(workspaces: Workspaces) -> None:
    old, new = workspaces.open("ann", "old"), workspaces.open("ann", "new")
    await old.write("a/b", b"1")
    await old.write("c", b"22")
    assert (await new.copy_from(old)).files == 2
    async with new.checkout() as checkout:
        with (checkout.path / "c").open("r+b") as file:
            file.write(b"changed in place")
    assert await content(new, "a/b") == b"1"
    assert await content(new, "c") == b"changed in place"
    assert await content(old, "c") == b"22"


async def test_a_copy_over_the_limits_leaves_nothing(workspaces: Workspaces) -> None:
    old, new = workspaces.open("ann", "old"), workspaces.open("ann", "new")
    for name in "abc":
        await new.write(name, b"x" * 600_000)
        await old.write(name.upper(), b"x" * 600_000)
    with pytest.raises(TooLarge):
        await new.copy_from(old)
    assert await paths(new) == ["a", "b", "c"]


async def test_a_store_that_answers_is_fine_and_one_that_is_gone_is_told(
    workspaces: Workspaces, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Asked at the store each time: what was there a moment ago may not be."""
    await workspaces.ping()
    if isinstance(workspaces, S3Workspaces):
        bucket, s3_url = (request.getfixturevalue(name) for name in ("bucket", "s3_url"))
        delete_bucket(s3_url, bucket)
        said = bucket
    else:
        (tmp_path / "root").rename(tmp_path / "elsewhere")
        (tmp_path / "root").write_text("a file in its place")
        said = "The workspace directory"
    with pytest.raises(StorageError, match=said):
        await workspaces.ping()


async def test_an_id_with_tricks_opens_no_workspace(workspaces: Workspaces) -> None:
    for user, run in (("..", "r"), ("a/b", "r"), ("ann", "../x"), ("", "r")):
        with pytest.raises(TailrunError):
            workspaces.open(user, run)
        with pytest.raises(TailrunError):
            await workspaces.delete_run(user, run)


async def test_the_loop_stays_free_while_storage_blocks(workspace: Workspace) -> None:
    """No call of a workspace does its I/O in the event loop's thread."""
    loop_thread = threading.get_ident()
    seen: set[int] = set()
    run = workspace._run  # type: ignore[attr-defined]

    async def spy(call, *args, **options):  # noqa: ANN001, ANN002, ANN003, ANN202
        def traced(*inner):  # noqa: ANN002, ANN202
            seen.add(threading.get_ident())
            return call(*inner)

        return await run(traced, *args, **options)

    workspace._run = spy  # type: ignore[attr-defined]
    await workspace.write("a", b"x")
    await workspace.list()
    async with workspace.checkout():
        pass
    assert seen
    assert loop_thread not in seen
    assert isinstance((await workspace.list())[0], FileInfo)


async def test_a_file_is_executable_as_it_was_stored(workspaces: Workspaces) -> None:
    """In every way that a file comes and goes by; a file that is replaced stays what it was."""
    store = workspaces.open("ann", "first")
    for body in (b"#!/bin/sh\n", stream(b"#!/bin/", b"sh\n")):
        assert (await store.write("run.sh", body, executable=True)).executable is True
        assert (await store.stat("run.sh")).executable is True
        assert (await store.write("run.sh", b"other")).executable is True
        assert (await store.write("run.sh", b"other", executable=False)).executable is False
    assert (await store.write("plain", b"x")).executable is False
    await store.write("run.sh", b"#!/bin/sh\n", executable=True)
    other = workspaces.open("ann", "second")
    await other.copy_from(store)
    for each in (store, other):
        async with each.checkout() as checkout:
            modes = {p.name: p.stat().st_mode & 0o777 for p in checkout.path.iterdir() if p.is_file()}
        assert modes == {"run.sh": 0o755, "plain": 0o644}
        assert {file.path: (await each.stat(file.path)).executable for file in await each.list()} == {
            "plain": False,
            "run.sh": True,
        }
