"""What only S3 can do to us: strangers' keys, a missing bucket, a store that is away, a lost run."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import boto3
import pytest
from mypy_boto3_s3 import S3Client
from support.servers import free_port
from support.workspace_contents import content, paths, store_at

from app.core.errors import LostOwnership, StorageError
from app.storage.s3_workspace import S3Workspaces
from app.storage.staging_archive import Archives
from app.storage.workspace import Workspace, WorkspaceLimits

PREFIX = "users/ann/runs/run/"


@pytest.fixture
async def store(s3_url: str, bucket: str, tmp_path: Path) -> AsyncIterator[S3Workspaces]:
    store = store_at(s3_url, bucket, tmp_path)
    yield store
    await store.close()


@pytest.fixture
def run(store: S3Workspaces) -> Workspace:
    return store.open("ann", "run")


@pytest.fixture
def client(s3_url: str) -> Iterator[S3Client]:
    client: S3Client = boto3.client(
        "s3", endpoint_url=s3_url, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    yield client
    client.close()


async def test_files_stand_under_the_documented_keys(run: Workspace, client: S3Client, bucket: str) -> None:
    await run.write("a/b.txt", b"x")
    assert client.get_object(Bucket=bucket, Key=PREFIX + "a/b.txt")["Body"].read() == b"x"


async def test_keys_of_strangers_that_are_no_paths_are_not_ours(
    run: Workspace, client: S3Client, bucket: str, tmp_path: Path
) -> None:
    """They are neither listed nor brought down, least of all outside of the checkout."""
    for key in ("../../../escape", "a/../../x", "/abs", "folder/", "a//b", "a\\b", "good"):
        client.put_object(Bucket=bucket, Key=PREFIX + key, Body=b"x")
    assert await paths(run) == ["good"]
    async with run.checkout() as checkout:
        assert [path.name for path in checkout.path.rglob("*")] == ["good"]
    assert checkout.changed == []
    assert list(tmp_path.rglob("escape")) == []


async def test_a_file_where_a_folder_stands_gives_way(run: Workspace, client: S3Client, bucket: str) -> None:
    """So it stands when a tool replaced a file by a folder and was cut off before the file was deleted."""
    for key in ("a", "a/b"):
        client.put_object(Bucket=bucket, Key=PREFIX + key, Body=b"x")
    async with run.checkout() as checkout:
        assert (checkout.path / "a/b").read_bytes() == b"x"
    assert await paths(run) == ["a/b"]


async def test_packing_for_a_pod_reads_only(
    store: S3Workspaces, run: Workspace, client: S3Client, bucket: str, tmp_path: Path
) -> None:
    """No tool has run, so every object stays: also the one that a checkout would delete at its end."""
    for key in ("a", "a/b", "c", "a//b"):
        client.put_object(Bucket=bucket, Key=PREFIX + key, Body=b"x")
    before = client.list_objects_v2(Bucket=bucket)["Contents"]
    asked: list[str] = []
    store.bucket._client.meta.events.register(
        "before-call.s3", lambda model, **_: asked.append(str(model.name))
    )
    packed = io.BytesIO()
    await Archives(store.scratch, store.threads, store.limits).pack(run, {"main.py": b"print()"}, packed)
    assert sorted(asked) == ["GetObject", "GetObject", "ListObjectsV2"]
    assert client.list_objects_v2(Bucket=bucket)["Contents"] == before
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        assert archive.getnames() == ["workspace/a/b", "workspace/c", "source/main.py"]
    assert list((tmp_path / "tmp/workspaces").glob("*/tmp*")) == []


async def test_what_is_done_in_a_read_only_folder_stays_there(run: Workspace) -> None:
    """Whether its reader ends well or not."""
    await run.write("a", b"old")
    for error in (None, ZeroDivisionError):
        with contextlib.suppress(ZeroDivisionError):
            async with run.read_only() as folder:
                (folder / "a").write_bytes(b"changed")
                (folder / "made").write_bytes(b"new")
                if error is not None:
                    raise error
        assert not folder.exists()
        assert await paths(run) == ["a"]
        assert await content(run, "a") == b"old"


async def test_a_run_that_was_lost_writes_nothing_back(run: Workspace, tmp_path: Path) -> None:
    """Its files belong to the attempt that took over."""
    await run.write("a", b"old")
    with pytest.raises(LostOwnership):  # noqa: PT012 - its end is what the test is about
        async with run.checkout() as checkout:
            (checkout.path / "a").write_bytes(b"stale")
            (checkout.path / "b").write_bytes(b"stale")
            raise LostOwnership
    assert await paths(run) == ["a"]
    assert await content(run, "a") == b"old"
    assert not checkout.path.exists()


async def test_the_temporary_directory_is_gone_however_it_ended(run: Workspace, tmp_path: Path) -> None:
    """Also what a tool made unreadable, or nested too deep to name."""
    async with run.checkout() as checkout:
        (checkout.path / "closed").mkdir(mode=0)
        (checkout.path / "link").symlink_to("/")
    assert not checkout.path.exists()
    with pytest.raises(ZeroDivisionError):
        async with run.checkout() as checkout:
            raise ZeroDivisionError
    assert not checkout.path.exists()
    assert list((tmp_path / "tmp/workspaces").glob("*/tmp*")) == []


async def test_a_large_file_goes_up_in_parts_and_comes_back(s3_url: str, bucket: str, tmp_path: Path) -> None:
    store = store_at(s3_url, bucket, tmp_path, WorkspaceLimits(100_000_000, 100_000_000, 10))
    run = store.open("ann", "run")
    data = bytes(range(256)) * 4096 * 20
    async with run.checkout() as checkout:
        (checkout.path / "big").write_bytes(data)
    assert (await run.stat("big")).size == len(data)
    assert await content(run, "big", 16_777_000, 16_778_000) == data[16_777_000:16_778_000]
    async with run.checkout() as checkout:
        assert (checkout.path / "big").read_bytes() == data
    await store.close()


async def test_a_missing_bucket_is_said(s3_url: str, tmp_path: Path) -> None:
    store = store_at(s3_url, "no-such-bucket", tmp_path)
    with pytest.raises(StorageError, match="no-such-bucket"):
        await store.ping()
    with pytest.raises(StorageError, match="NoSuchBucket"):
        await store.open("ann", "run").list()
    await store.close()


async def test_a_store_that_is_away_is_said_without_secrets(tmp_path: Path) -> None:
    store = store_at(f"http://127.0.0.1:{free_port()}", "bucket", tmp_path)
    run = store.open("ann", "run")
    for call in (store.ping(), run.list(), run.write("a", b"x"), run.stat("a"), content(run, "a")):
        with pytest.raises(StorageError) as caught:
            await call
        assert "very-secret" not in str(caught.value)
    with pytest.raises(StorageError):
        async with run.checkout():
            pytest.fail("a tool must not start without its files")
    await store.close()


async def test_a_cancelled_download_stops_early(s3_url: str, bucket: str, tmp_path: Path) -> None:
    """Cancelling does not wait for all files, and nothing is left."""
    store = store_at(s3_url, bucket, tmp_path, WorkspaceLimits(10_000_000, 100_000_000, 100))
    run = store.open("ann", "run")
    async with run.checkout() as checkout:
        for n in range(60):
            (checkout.path / f"f{n}").write_bytes(b"x" * 100_000)
    fetched, begun = 0, threading.Event()
    get = store.bucket.get

    def counted(key: str, start: int = 0, end: int | None = None):  # noqa: ANN202
        nonlocal fetched
        fetched += 1
        begun.set()
        return get(key, start, end)

    store.bucket.get = counted  # type: ignore[method-assign]

    async def tool() -> None:
        async with run.checkout():
            pytest.fail("it was cancelled")

    for _ in range(5):
        fetched = 0
        begun.clear()
        task = asyncio.ensure_future(tool())
        assert await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert fetched < 60
        assert list((tmp_path / "tmp/workspaces").glob("*/tmp*")) == []
    await store.close()
