"""What holds for every checkout, while a tool works on a run's files: on a directory and on S3."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import tarfile
from pathlib import Path

import pytest
from support.workspace_contents import LIMITS, content, let_go, paths, store_at

from app.core.errors import NotFound, TooLarge, Unprocessable
from app.storage.local_workspace import LocalWorkspaces
from app.storage.staging_archive import Archives
from app.storage.workspace import Workspace, Workspaces


async def test_a_checkout_brings_files_down_and_what_changed_back(workspace: Workspace) -> None:
    for path in ("keep/same", "changed", "removed"):
        await workspace.write(path, b"old")
    async with workspace.checkout() as checkout:
        assert (checkout.path / "keep/same").read_bytes() == b"old"
        (checkout.path / "changed").write_bytes(b"new content")
        (checkout.path / "removed").unlink()
        (checkout.path / "made/deep").mkdir(parents=True)
        (checkout.path / "made/deep/file").write_bytes(b"made")
        (checkout.path / "made/empty").mkdir()
    sizes = {file.path: file.size for file in checkout.changed}
    assert sizes == {"changed": 11, "made/deep/file": 4, "removed": -1}
    assert await paths(workspace) == ["changed", "keep/same", "made/deep/file"]
    assert await content(workspace, "changed") == b"new content"


async def test_a_checkout_of_nothing_is_an_empty_directory(workspace: Workspace) -> None:
    async with workspace.checkout() as checkout:
        assert list(checkout.path.iterdir()) == []
    assert checkout.changed == []


async def test_a_read_only_folder_holds_the_files_and_leaves_them_as_they_are(workspace: Workspace) -> None:
    """What comes and goes over HTTP meanwhile is neither taken back nor counted."""
    for path in ("keep/same", "removed"):
        await workspace.write(path, b"old")
    before = await workspace.stat("keep/same")
    async with workspace.read_only() as folder:
        assert (folder / "keep/same").read_bytes() == b"old"
        await workspace.delete("removed")
        await workspace.write("uploaded", b"new")
    assert await paths(workspace) == ["keep/same", "uploaded"]
    assert await workspace.stat("keep/same") == before


@pytest.mark.parametrize("written", [[], ["folder/file"]])
async def test_packing_for_a_pod_changes_nothing_on_the_disk(tmp_path: Path, written: list[str]) -> None:
    """Of a run without files not even a folder is made."""
    workspaces = LocalWorkspaces(tmp_path / "root", LIMITS)
    workspace = workspaces.open("ann", "run-1")
    for path in written:
        await workspace.write(path, b"x")

    def on_disk() -> dict[Path, tuple[int, int]]:
        found = {path: path.stat() for path in (tmp_path / "root").rglob("users/**/*")}
        return {path: (status.st_ino, status.st_mtime_ns) for path, status in found.items()}

    before, packed = on_disk(), io.BytesIO()
    await Archives(workspaces.scratch, workspaces.threads, workspaces.limits).pack(workspace, {}, packed)
    after = on_disk()
    assert after == before
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        assert archive.getnames() == [f"workspace/{path}" for path in written]
    await workspaces.close()


async def test_a_change_that_keeps_size_and_is_at_once_is_seen(workspace: Workspace) -> None:
    await workspace.write("a", b"1")
    async with workspace.checkout() as checkout:
        replacement = checkout.path / "b"
        replacement.write_bytes(b"2")
        replacement.rename(checkout.path / "a")
    assert [file.path for file in checkout.changed] == ["a"]
    assert await content(workspace, "a") == b"2"


async def test_what_a_failed_tool_made_is_kept(workspace: Workspace) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - its end is what the test is about
        async with workspace.checkout() as checkout:
            (checkout.path / "core").write_bytes(b"evidence")
            raise ZeroDivisionError
    assert [file.path for file in checkout.changed] == ["core"]
    assert await content(workspace, "core") == b"evidence"


async def test_what_a_cancelled_tool_made_is_kept(workspace: Workspace) -> None:
    """Also when the task is cancelled again and again while the files are brought back."""
    for attempt in range(20):
        ready = asyncio.Event()

        async def tool(name: str, ready: asyncio.Event) -> None:
            async with workspace.checkout() as checkout:
                (checkout.path / name).write_bytes(b"x" * 10_000)
                ready.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(tool(f"f{attempt % 10}", ready))
        await ready.wait()
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        assert task.cancelled()
    assert len(await workspace.list()) == 10


async def test_a_checkout_cancelled_at_its_start_leaves_nothing(workspace: Workspace) -> None:
    await workspace.write("a", b"x" * 500_000)

    async def tool() -> None:
        async with workspace.checkout():
            pass

    for _ in range(20):
        task = asyncio.ensure_future(tool())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await content(workspace, "a") == b"x" * 500_000


async def test_what_is_too_large_is_named_and_the_rest_is_kept(workspace: Workspace) -> None:
    with pytest.raises(TooLarge, match=r"big\.bin"):  # noqa: PT012 - its end raises
        async with workspace.checkout() as checkout:
            (checkout.path / "a").write_bytes(b"fits")
            (checkout.path / "big.bin").write_bytes(b"x" * (LIMITS.file_bytes + 1))
            (checkout.path / "z").write_bytes(b"fits too")
    assert [file.path for file in checkout.changed] == ["a", "z"]
    assert await content(workspace, "z") == b"fits too"


async def test_too_many_files_of_a_tool_are_refused(workspace: Workspace) -> None:
    with pytest.raises(TooLarge, match="WORKSPACE_MAX_FILES"):  # noqa: PT012 - its end raises
        async with workspace.checkout() as checkout:
            for n in range(LIMITS.files + 1):
                (checkout.path / f"f{n:02}").write_bytes(b"")
    assert len(checkout.changed) == LIMITS.files


async def test_the_error_of_the_tool_goes_before_that_of_the_limits(workspace: Workspace) -> None:
    with pytest.raises(ZeroDivisionError) as caught:  # noqa: PT012 - its end raises, too
        async with workspace.checkout() as checkout:
            (checkout.path / "big").write_bytes(b"x" * (LIMITS.file_bytes + 1))
            raise ZeroDivisionError
    assert "big" in caught.value.__notes__[0]


async def test_a_tool_may_replace_a_file_by_a_folder_and_back(workspace: Workspace) -> None:
    await workspace.write("a", b"file")
    async with workspace.checkout() as checkout:
        (checkout.path / "a").unlink()
        (checkout.path / "a").mkdir()
        (checkout.path / "a/b").write_bytes(b"inside")
    assert await paths(workspace) == ["a/b"]
    async with workspace.checkout() as checkout:
        (checkout.path / "a/b").unlink()
        (checkout.path / "a").rmdir()
        (checkout.path / "a").write_bytes(b"file again")
    assert await paths(workspace) == ["a"]


async def test_an_uploaded_file_is_not_replaced_by_the_copy(workspaces: Workspaces) -> None:
    old, new = workspaces.open("ann", "old"), workspaces.open("ann", "new")
    for name in "ab":
        await old.write(name, b"old")
    await new.write("b", b"uploaded")
    assert (await new.copy_from(old)).files == 1
    assert (await new.copy_from(old)).files == 0
    assert [await content(new, name) for name in "ab"] == [b"old", b"uploaded"]


async def test_the_next_step_sees_what_this_one_left(workspaces: Workspaces) -> None:
    """Folders without files, links, modes and times; the same in a copy. A repository of git is all that."""
    old, new = workspaces.open("ann", "old"), workspaces.open("ann", "new")
    async with old.checkout() as checkout:
        for folder in ("empty/deep", "refs"):
            (checkout.path / folder).mkdir(parents=True)
        for name, mode in (("plain", 0o644), ("key", 0o600), ("object", 0o444), ("run", 0o750)):
            (checkout.path / name).write_text(name)
            (checkout.path / name).chmod(mode)
        os.utime(checkout.path / "plain", ns=(10**18, 10**18 + 7))
        (checkout.path / "refs" / "link").symlink_to("../plain")
        (checkout.path / "dangling").symlink_to("nowhere")
        (checkout.path / "out").symlink_to("/usr/bin/env")
        left = described(checkout.path)
    assert checkout.skipped == []
    async with old.checkout() as checkout:
        assert described(checkout.path) == left
    assert (await new.copy_from(old)).files == 4
    async with new.checkout() as checkout:
        assert described(checkout.path) == left


async def test_what_a_step_removes_is_gone_in_the_next(workspace: Workspace) -> None:
    async with workspace.checkout() as checkout:
        (checkout.path / "folder").mkdir()
        (checkout.path / "link").symlink_to("folder")
    async with workspace.checkout() as checkout:
        (checkout.path / "folder").rmdir()
        (checkout.path / "link").unlink()
    async with workspace.checkout() as checkout:
        assert described(checkout.path) == {}


async def test_an_upload_goes_before_the_link_of_a_step(workspace: Workspace) -> None:
    """A file that comes over HTTP never passes through a link that a tool has left."""
    async with workspace.checkout() as checkout:
        (checkout.path / "target").mkdir()
        (checkout.path / "link").symlink_to("target")
    with contextlib.suppress(Unprocessable):
        await workspace.write("link/file", b"x")
    async with workspace.checkout() as checkout:
        assert list((checkout.path / "target").iterdir()) == []


@pytest.mark.parametrize("kind", ["local", "s3"])
async def test_what_can_not_be_opened_stays_behind_and_is_named(
    kind: str, unprivileged: Path, s3_url: str, bucket: str
) -> None:
    """It fails neither the step that left it nor the run that begins with a copy."""
    local = kind == "local"
    stored = LocalWorkspaces(unprivileged, LIMITS) if local else store_at(s3_url, bucket, unprivileged)
    await leave_closed(stored.open("ann", "old"), stored.open("ann", "new"), local=local)
    await stored.close()


async def leave_closed(old: Workspace, new: Workspace, *, local: bool) -> None:
    async with old.checkout() as checkout:
        (checkout.path / "kept").write_bytes(b"k")
        (checkout.path / "closed").write_bytes(b"s")
        (checkout.path / "closed").chmod(0)
    assert checkout.skipped == ([] if local else ["closed"])
    copied = await new.copy_from(old)
    assert (copied.files, list(copied.skipped)) == (1, ["closed"] if local else [])
    assert await paths(new) == ["kept"]


def described(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return what is below a folder: of files mode, time and content; of links where they lead."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        name, about = str(path.relative_to(folder)), path.lstat()
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_dir():
            found[name] = ("folder",)
        else:
            found[name] = (oct(about.st_mode & 0o777), about.st_mtime_ns, path.read_bytes())
    return found


async def test_links_and_special_files_of_a_tool_are_no_files(workspace: Workspace, tmp_path: Path) -> None:
    """Neither listed nor read, and a FIFO makes nobody wait."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"secret")
    with socket.socket(socket.AF_UNIX) as sock:
        async with workspace.checkout() as checkout:
            (checkout.path / "real").write_bytes(b"x")
            (checkout.path / "file-link").symlink_to(secret / "key")
            (checkout.path / "folder-link").symlink_to(secret)
            (checkout.path / "inner-link").symlink_to("real")
            os.mkfifo(checkout.path / "fifo")
            (checkout.path / "bad\nname").write_bytes(b"x")
            with contextlib.chdir(checkout.path):  # the path of a socket must be short
                sock.bind("socket")
    assert [file.path for file in checkout.changed] == ["real"]
    assert sorted(checkout.skipped) == ["bad\nname", "fifo", "socket"]
    with let_go(checkout.path / "fifo"):
        assert await paths(workspace) == ["real"]
        for path in ("file-link", "folder-link/key", "inner-link", "fifo", "socket"):
            with pytest.raises((NotFound, Unprocessable)):
                await content(workspace, path)
    assert (secret / "key").read_bytes() == b"secret"


async def test_a_program_stays_executable(workspaces: Workspaces) -> None:
    old, new = workspaces.open("ann", "old"), workspaces.open("ann", "new")
    await old.write("tool.sh", b"#!/bin/sh\n")
    async with old.checkout() as checkout:
        (checkout.path / "tool.sh").chmod(0o755)
    async with old.checkout() as checkout:
        assert (checkout.path / "tool.sh").stat().st_mode & 0o100
    await new.copy_from(old)
    async with new.checkout() as checkout:
        assert (checkout.path / "tool.sh").stat().st_mode & 0o100


async def test_a_file_uploaded_while_a_tool_runs_is_kept(workspace: Workspace) -> None:
    async with workspace.checkout() as checkout:
        await workspace.write("uploaded", b"over HTTP")
        (checkout.path / "made").write_bytes(b"by the tool")
    assert await paths(workspace) == ["made", "uploaded"]


async def test_many_files_go_both_ways(workspaces: Workspaces) -> None:
    store = workspaces.open("bob", "many")
    async with store.checkout() as checkout:
        for n in range(LIMITS.files):
            (checkout.path / f"d{n % 5}").mkdir(exist_ok=True)
            (checkout.path / f"d{n % 5}" / f"f{n}").write_bytes(b"%d" % n)
    async with store.checkout() as checkout:
        found = {path.name: path.read_bytes() for path in checkout.path.rglob("f*")}
    assert found == {f"f{n}": b"%d" % n for n in range(LIMITS.files)}
    assert checkout.changed == []
