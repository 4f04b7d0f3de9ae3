"""A directory workspace under a tool that changes it at every moment: nothing leaks, nothing hangs."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.workspace_contents import LIMITS, content, let_go, paths, stream

from app.core.errors import Conflict, NotFound, StorageError, TooLarge, Unprocessable
from app.core.names import MAX_PARTS
from app.storage.local_workspace import LocalWorkspaces
from app.storage.workspace import Workspace, WorkspaceLimits

EXPECTED = (NotFound, Unprocessable, Conflict)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(b"secret")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Workspace:
    return LocalWorkspaces(tmp_path / "root", LIMITS).open("ann", "run")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "root/users/ann/runs/run"
    path.mkdir(parents=True)
    return path


@contextmanager
def tool(act: Callable[[], None]) -> Generator[None]:
    """Do something over and over in another thread."""
    done = threading.Event()

    def loop() -> None:
        while not done.is_set():
            with suppress(FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError):
                act()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def swaps(folder: Path, outside: Path) -> Callable[[], None]:
    """Return a step of a tool that has `folder/d` a folder one moment and a link out the next."""
    parked = folder.parent / "parked"
    parked.mkdir()
    number = itertools.count()

    def act() -> None:
        target = folder / "d"
        if target.is_symlink():
            target.unlink()
            target.mkdir()
        else:
            target.rename(parked / str(next(number)))
            target.symlink_to(outside)

    return act


async def test_a_folder_swapped_for_a_link_leads_nowhere(run: Workspace, folder: Path, outside: Path) -> None:
    """Reads, writes, deletes and lists meet the swap at every point, and never leave the workspace."""
    (folder / "d").mkdir()
    seen: set[str] = set()
    with tool(swaps(folder, outside)):
        for n in range(2000):
            try:
                await run.write("d/file", b"inside")
                seen.add("written")
                assert await content(run, "d/file") == b"inside"
                await run.delete("d/file")
            except EXPECTED as error:
                seen.add(type(error).__name__)
            assert {file.size for file in await run.list()} <= {6}
            if {"written", "InvalidPath"} <= seen and n > 200:
                break
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"file": b"secret"}
    assert {"written", "InvalidPath"} <= seen


async def test_a_file_swapped_for_a_link_or_a_fifo_is_never_followed(
    run: Workspace, folder: Path, outside: Path
) -> None:
    def act() -> None:
        (folder / "x").symlink_to(outside / "file")
        (folder / "x").unlink()
        os.mkfifo(folder / "x")
        (folder / "x").unlink()
        (folder / "x").write_bytes(b"inside")
        (folder / "x").unlink()

    got: set[bytes] = set()
    with let_go(folder / "x"), tool(act):
        for _ in range(300):
            with suppress(*EXPECTED):
                got.add(await content(run, "x"))
            with suppress(*EXPECTED):
                await run.write("x", b"written")
            await run.list()
    assert got <= {b"", b"inside", b"written"}
    assert (outside / "file").read_bytes() == b"secret"


async def test_the_run_folder_itself_may_be_a_link(run: Workspace, folder: Path, outside: Path) -> None:
    folder.rmdir()
    folder.symlink_to(outside)
    for call in (
        run.list(),
        run.stat("file"),
        content(run, "file"),
        run.write("new", b"x"),
        run.delete("file"),
    ):
        with pytest.raises(EXPECTED):
            await call
    assert [path.name for path in outside.iterdir()] == ["file"]


async def test_a_checkout_whose_folder_became_a_link_takes_nothing_from_it(
    run: Workspace, folder: Path, outside: Path
) -> None:
    (folder / "d").mkdir()
    (folder / "d/file").write_bytes(b"mine")
    async with run.checkout() as checkout:
        (checkout.path / "d/file").unlink()
        (checkout.path / "d").rmdir()
        (checkout.path / "d").symlink_to(outside)
    assert [(file.path, file.size) for file in checkout.changed] == [("d/file", -1)]
    assert checkout.skipped == []


async def test_limits_hold_for_writers_at_once(tmp_path: Path) -> None:
    """Two processes' worth of writers never exceed the limit together."""
    limits = WorkspaceLimits(file_bytes=1000, total_bytes=3000, files=100)
    homes = [LocalWorkspaces(tmp_path / "root", limits) for _ in range(2)]
    for attempt in range(20):
        runs = [home.open("ann", f"run-{attempt}") for home in homes]
        results = await asyncio.gather(
            *(runs[n % 2].write(f"f{n}", b"x" * 1000) for n in range(8)), return_exceptions=True
        )
        assert sum(isinstance(result, TooLarge) for result in results) == 5
        assert len(await paths(runs[0])) == 3
    for home in homes:
        await home.close()


async def test_deeply_nested_folders_harm_nobody(tmp_path: Path) -> None:
    """A tool nests folders deeper than a path can be long; the run can still be listed and removed."""
    home = LocalWorkspaces(tmp_path / "root", LIMITS)
    run = home.open("ann", "run")
    await run.write("top", b"x")
    async with run.checkout() as checkout:
        fd = os.open(checkout.path, os.O_RDONLY)
        for _ in range(1200):
            os.mkdir("nested", dir_fd=fd)
            inner = os.open("nested", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(fd)
    assert checkout.skipped == ["/".join(["nested"] * (MAX_PARTS + 1))]
    assert await paths(run) == ["top"]
    await home.delete_run("ann", "run")
    await home.close()
    assert not (tmp_path / "root/users/ann/runs/run").exists()
    assert [path.suffix for path in (tmp_path / "root/.scratch").iterdir()] == [".lock"] * 2


async def test_a_full_disk_is_said_and_leaves_nothing(
    run: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if os.fstat(fd).st_size >= 4096:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[:4096])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StorageError, match="full"):
        await run.write("a", b"x" * 100_000)
    assert await run.list() == []
    assert list((tmp_path / "root/.scratch").glob("*/tmp*")) == []


async def test_a_folder_that_a_tool_closed_is_said_and_nothing_in_it_counts_as_removed(
    unprivileged: Path,
) -> None:
    home = LocalWorkspaces(unprivileged / "root", LIMITS)
    run = home.open("ann", "run")
    await run.write("closed/file", b"x")
    async with run.checkout() as checkout:
        (checkout.path / "closed").chmod(0)
    assert (checkout.changed, checkout.skipped) == ([], ["closed/"])
    for call in (run.write("closed/new", b""), run.stat("closed/file"), run.delete("closed/file")):
        with pytest.raises(Conflict, match="permission"):
            await call
    assert await run.list() == []
    await home.delete_run("ann", "run")
    await home.close()
    assert not checkout.path.exists()


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_upload_is_on_the_disk_before_it_is_answered(
    run: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    """The file before it gets its name, then the folder that has it: a power cut shows all or nothing."""
    synced: list[tuple[bool, bool]] = []
    sync = os.fsync

    def fsync(fd: int) -> None:
        synced.append((Path(f"/proc/self/fd/{fd}").resolve() == folder, (folder / "file").exists()))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    await run.write("file", stream(b"a", b"b") if streamed else b"ab")
    assert synced == ([(False, False), (True, True)] if streamed else [])
