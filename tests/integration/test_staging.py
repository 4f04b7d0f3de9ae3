"""What holds for both ways of staging: files to a tool's pod and back, with the pod's own sync."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import tarfile
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from pydantic import SecretStr
from staging_world import KEY, World, manifest, member, packed
from support.api_server import changed, serving, settings_for
from support.servers import RedisServer
from support.stack import wait_for
from support.workspace_contents import content, paths

from app.config import Settings
from app.core.errors import Conflict, TooLarge, Unprocessable
from app.storage.factory import open_staging, open_workspaces
from app.storage.s3_staging import S3Staging
from app.storage.staging import StagingUnset, UploadMissing, UploadRefused
from app.storage.staging_archive import _manifest, _unpack
from app.storage.workspace import Checkout, WorkspaceLimits
from toolbox.archive import Refused

LIMITS = {"file_max_bytes": 1_000_000, "workspace_max_bytes": 2_500_000, "workspace_max_files": 12}


@pytest.fixture(params=["api", "s3"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    deep = request.node.get_closest_marker("deep") is not None
    limits = {name: bound * (1000 if deep else 1) for name, bound in LIMITS.items()}
    with contextlib.ExitStack() as stack:
        if request.param == "s3":
            settings = Settings(
                data_dir=tmp_path / "data",
                s3_bucket=request.getfixturevalue("bucket"),
                s3_endpoint=request.getfixturevalue("s3_url"),
                s3_region="us-east-1",
                s3_access_key="k",
                s3_secret_key=SecretStr("s"),
                **limits,
            )
        else:
            redis: RedisServer = request.getfixturevalue("redis_server")
            served = settings_for(
                tmp_path / "data", redis.url, request.getfixturevalue("sqlite_url"), **limits
            )
            url = stack.enter_context(serving(served)).url
            settings = changed(served, tool_sync_url=url)
        workspaces = open_workspaces(settings)
        world = World(tmp_path, workspaces, open_staging(settings, workspaces))
        yield world
        for pod in world.pods:
            pod.close()
        await world.staging.drop(KEY)
        await workspaces.close()


async def test_a_round_trip(world: World) -> None:
    """The pod has the run's files and the sources; what its tool did comes back, and nothing else moves."""
    for path in ("keep/same", "changed", "removed", "folder/inside", "ünïcode \u2028"):
        await world.workspace.write(path, b"old " + path.encode())
    pod = world.pod(await world.offer({"main.py": b"print()", "lib/x.bin": bytes(range(256))})).wait_ready()
    here = pod.workspace
    assert (here / "keep/same").read_bytes() == b"old keep/same"
    assert (here / "ünïcode \u2028").read_bytes() == "old ünïcode \u2028".encode()
    assert (pod.shared / "source/main.py").read_bytes() == b"print()"
    assert (pod.shared / "source/lib/x.bin").read_bytes() == bytes(range(256))
    (here / "changed").write_bytes(b"new")
    (here / "removed").unlink()
    (here / "folder/inside").unlink()
    (here / "folder").rmdir()
    (here / "folder").write_bytes(b"a file now")
    (here / "made/deep").mkdir(parents=True)
    (here / "made/deep/run.sh").write_bytes(b"#!/bin/sh\n")
    (here / "made/deep/run.sh").chmod(0o755)
    (here / "made/empty").write_bytes(b"")
    (here / "link").symlink_to("/etc/passwd")
    os.mkfifo(here / "pipe")
    assert pod.terminate() == 0, pod.log
    for _ in range(2):  # the worker may die in between
        collected = await world.staging.collect(KEY, world.workspace)
        assert {file.path: file.size for file in collected.changed} == {
            "changed": 3,
            "folder": 10,
            "folder/inside": -1,
            "made/deep/run.sh": 10,
            "made/empty": 0,
            "removed": -1,
        }
        assert (collected.skipped, collected.failure) == (["pipe"], None)
        assert await paths(world.workspace) == [
            "changed", "folder", "keep/same", "made/deep/run.sh", "made/empty", "ünïcode \u2028"
        ]  # fmt: skip
        assert await content(world.workspace, "changed") == b"new"
        assert await content(world.workspace, "folder") == b"a file now"
    again = world.pod(await world.offer()).wait_ready()
    assert os.access(again.workspace / "made/deep/run.sh", os.X_OK)
    assert not (again.shared / "source").exists()


async def test_all_of_a_folder_travels(world: World) -> None:
    """Links, empty folders, modes and times are in the next pod what the last one left, and can change."""
    pod = world.pod(await world.offer()).wait_ready()
    here = pod.workspace
    (here / "empty/inner").mkdir(parents=True)
    (here / "with a link").mkdir()
    for link, target in {
        "a": "file",
        "with a link/up": "../file",
        "nowhere": "no/such",
        "out": "/etc",
    }.items():
        (here / link).symlink_to(target)
    (here / "file").write_bytes(b"1")
    (here / "file").chmod(0o440)
    os.utime(here / "file", (1_500_000_000, 1_500_000_000))
    was = described(here)
    assert pod.terminate() == 0, pod.log
    for _ in range(2):
        collected = await world.staging.collect(KEY, world.workspace)
        assert ([file.path for file in collected.changed], collected.skipped) == (["file"], [])
    assert await paths(world.workspace) == ["file"]

    second = world.pod(await world.offer()).wait_ready()
    here = second.workspace
    assert described(here) == was
    (here / "a").unlink()
    (here / "a").write_bytes(b"a file where a link was")
    (here / "nowhere").unlink()
    (here / "nowhere").mkdir()
    (here / "nowhere/file").write_bytes(b"in a folder where a link was")
    (here / "out").unlink()
    (here / "out").symlink_to("elsewhere")
    (here / "file").unlink()
    (here / "file").symlink_to("a")
    (here / "empty/inner").rmdir()
    (here / "with a link/up").unlink()
    (here / "with a link").rmdir()
    (here / "with a link").symlink_to("empty")
    was = described(here)
    assert second.terminate() == 0, second.log
    for _ in range(2):
        collected = await world.staging.collect(KEY, world.workspace)
        assert (collected.skipped, collected.failure) == ([], None)
    third = world.pod(await world.offer()).wait_ready()
    assert described(third.workspace) == was
    assert third.terminate() == 0
    async with world.workspace.checkout() as local:  # as a step of the local executor finds it
        assert described(local.path) == was


def described(top: Path) -> dict[str, object]:
    """Everything below a folder: where links lead, folders, files with mode, time and content."""
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        name, status = str(path.relative_to(top)), path.lstat()
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = oct(status.st_mode & 0o777), int(status.st_mtime), path.read_bytes()
    return found


async def test_a_pod_of_an_earlier_release_leaves_links_and_folders_alone(world: World) -> None:
    """Its manifest has no word of them."""
    pod = world.pod(await world.offer()).wait_ready()
    (pod.workspace / "empty").mkdir()
    (pod.workspace / "link").symlink_to("a")
    assert pod.terminate() == 0
    await world.staging.collect(KEY, world.workspace)
    await world.send_back(packed(member("workspace/a", b"a"), manifest()))
    await world.staging.collect(KEY, world.workspace)
    next_one = world.pod(await world.offer()).wait_ready()
    assert sorted(described(next_one.workspace)) == ["a", "empty", "link"]


async def test_links_and_folders_are_limited(world: World) -> None:
    pod = world.pod(await world.offer()).wait_ready()
    for number in range(20):
        (pod.workspace / f"link{number:02}").symlink_to("x")
    assert pod.terminate() == 0
    collected = await world.staging.collect(KEY, world.workspace)
    assert isinstance(collected.failure, TooLarge)
    again = world.pod(await world.offer()).wait_ready()
    assert sorted(described(again.workspace)) == [f"link{number:02}" for number in range(12)]


@pytest.mark.parametrize(
    "tree",
    [
        [],
        {"folders": []},
        {"folders": ["../out"], "links": {}},
        {"folders": ["/out"], "links": {}},
        {"folders": [], "links": {"../out": "x"}},
        {"folders": [], "links": {"a/../../out": "x"}},
        {"folders": [], "links": {"l": 5}},
        {"folders": [], "links": {"l": ""}},
        {"folders": [], "links": {"l": "a\0b"}},
        {"folders": [f"f{number}" for number in range(500)], "links": {}},
    ],
)
async def test_a_hostile_tree_is_refused(world: World, tree: object) -> None:
    await world.send_back(packed(member("workspace/x", b"x"), manifest(tree=tree)))
    with pytest.raises(UploadRefused):
        await world.staging.collect(KEY, world.workspace)
    assert await paths(world.workspace) == []


async def test_a_link_leads_no_file_elsewhere(world: World, tmp_path: Path) -> None:
    """Whether it came before, or comes in the same upload as a file below its name."""
    out = tmp_path / "out"
    out.mkdir()
    tree = {"folders": [], "links": {"l": str(out)}}
    await world.send_back(packed(member("workspace/l/x", b"x"), manifest(tree=tree)))
    await world.staging.collect(KEY, world.workspace)
    await world.send_back(packed(manifest(tree=tree, removed=["l/x"])))
    await world.staging.collect(KEY, world.workspace)
    await world.send_back(packed(member("workspace/l/x", b"x"), manifest(tree=tree)))
    collected = await world.staging.collect(KEY, world.workspace)
    assert list(out.iterdir()) == []
    assert isinstance(collected.failure, Unprocessable | None)


async def test_a_change_that_hides(world: World) -> None:
    """Same size, same time, written at once: the tool's change is seen all the same."""
    await world.workspace.write("a", b"11")
    await world.workspace.write("b", b"22")
    pod = world.pod(await world.offer()).wait_ready()
    before = (pod.workspace / "a").stat()
    (pod.workspace / "a").write_bytes(b"33")
    os.utime(pod.workspace / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert pod.terminate() == 0
    collected = await world.staging.collect(KEY, world.workspace)
    assert [file.path for file in collected.changed] == ["a"]
    assert await content(world.workspace, "a") == b"33"


async def test_nothing_to_bring_and_nothing_back(world: World) -> None:
    """An empty workspace makes the trip as well."""
    pod = world.pod(await world.offer()).wait_ready()
    assert pod.terminate() == 0
    collected = await world.staging.collect(KEY, world.workspace)
    assert (collected.changed, collected.skipped, collected.failure) == ([], [], None)


async def test_a_restarted_sync_leaves_the_tools_work_alone(world: World) -> None:
    """Killed while the tool runs, it doesn't bring the old files down again, and knows what was there."""
    await world.workspace.write("a", b"old")
    await world.workspace.write("gone", b"old")
    pod = world.pod(await world.offer()).wait_ready()
    (pod.workspace / "a").write_bytes(b"the tool's")
    (pod.workspace / "gone").unlink()
    pod.popen.kill()
    pod.wait()
    pod.start()
    wait_for(lambda: any(line["k"] == "resumed" for line in pod.said()), "the restarted sync", 60)
    assert pod.terminate() == 0
    collected = await world.staging.collect(KEY, world.workspace)
    assert {file.path: file.size for file in collected.changed} == {"a": 10, "gone": -1}
    assert await content(world.workspace, "a") == b"the tool's"


async def test_a_pod_that_sends_nothing_is_an_error_of_its_own(world: World) -> None:
    """The executor can tell a dead pod from a store that is away; offering again forgets old uploads."""
    with pytest.raises(UploadMissing):
        await world.staging.collect(KEY, world.workspace)
    await world.send_back(packed(manifest()))
    await world.staging.collect(KEY, world.workspace)
    await world.offer()
    with pytest.raises(UploadMissing):
        await world.staging.collect(KEY, world.workspace)


async def test_what_is_dropped_is_gone(world: World) -> None:
    """Neither way leads anywhere any more; dropping twice is no error."""
    offer = await world.offer()
    await world.send_back(packed(manifest()), offer)
    await world.staging.drop(KEY)
    await world.staging.drop(KEY)
    with pytest.raises(UploadMissing):
        await world.staging.collect(KEY, world.workspace)
    answer = httpx2.get(offer.down["url"], headers=offer.down["headers"], trust_env=False)
    assert answer.status_code == 404
    pod = world.pod(offer)
    assert pod.wait() == 1
    assert "status 404" in (pod.shared / "failed").read_text()


async def test_a_tool_over_the_limits_keeps_what_fits(world: World) -> None:
    """Too large a file stays behind with an error that names it; the rest comes back."""
    await world.workspace.write("a", b"old")
    pod = world.pod(await world.offer()).wait_ready()
    (pod.workspace / "big").write_bytes(bytes(1_000_001))
    (pod.workspace / "small").write_bytes(b"x")
    assert pod.terminate() == 0
    collected = await world.staging.collect(KEY, world.workspace)
    assert [file.path for file in collected.changed] == ["small"]
    assert isinstance(collected.failure, TooLarge)
    assert "big" in str(collected.failure)
    assert await paths(world.workspace) == ["a", "small"]


async def test_the_limit_for_all_files_counts_what_stayed(world: World) -> None:
    """What the pod could not know, that others wrote meanwhile, is counted by the worker."""
    pod = world.pod(await world.offer()).wait_ready()
    for n in range(10):
        (pod.workspace / f"f{n}").write_bytes(bytes(100))
    for n in range(5):
        await world.workspace.write(f"meanwhile{n}", b"x")
    assert pod.terminate() == 0
    collected = await world.staging.collect(KEY, world.workspace)
    assert len(collected.changed) == 7
    assert isinstance(collected.failure, TooLarge)
    assert len(await paths(world.workspace)) == 12


async def test_a_folder_in_the_way_is_a_conflict(world: World) -> None:
    """A file that came over HTTP meanwhile is not run over."""
    pod = world.pod(await world.offer()).wait_ready()
    (pod.workspace / "out").write_bytes(b"tool")
    (pod.workspace / "other").write_bytes(b"tool")
    await world.workspace.write("out/uploaded", b"user")
    assert pod.terminate() == 0
    collected = await world.staging.collect(KEY, world.workspace)
    assert [file.path for file in collected.changed] == ["other"]
    assert isinstance(collected.failure, Conflict)
    assert await paths(world.workspace) == ["other", "out/uploaded"]


@pytest.mark.parametrize("key", ["", "../x", "A", "a/b", "-a", "a" * 64, "a\n", "."])
async def test_odd_keys(world: World, key: str) -> None:
    """A key is a label and nothing else."""
    for work in (
        world.staging.offer(key, world.workspace, {}, lifetime_s=1),
        world.staging.collect(key, world.workspace),
        world.staging.drop(key),
    ):
        with pytest.raises(Unprocessable):
            await work


async def test_odd_sources(world: World) -> None:
    """A source's name leads nowhere else."""
    with pytest.raises(Unprocessable):
        await world.staging.offer(KEY, world.workspace, {"../x": b""}, lifetime_s=60)


async def test_leftovers_are_swept(world: World) -> None:
    """What nobody dropped goes when it is old enough, and not before."""
    await world.send_back(packed(manifest()))
    assert await world.staging.sweep(3600) == 0
    await world.staging.collect(KEY, world.workspace)
    assert await world.staging.sweep(-3600) == 1
    with pytest.raises(UploadMissing):
        await world.staging.collect(KEY, world.workspace)
    assert await world.staging.sweep(-3600) == 0


async def test_addresses_are_json_and_hold_no_credential(world: World) -> None:
    """What goes into the pod's Secret names these two archives, and nothing of what opens the store."""
    said = json.dumps((await world.offer()).sync_json())
    assert "secret" not in said.lower()
    assert set(json.loads(said)) == {"down", "up", "limits"}


@pytest.mark.parametrize("world", ["api"], indirect=True)
async def test_an_address_of_ours_opens_one_archive_in_one_direction(world: World) -> None:
    """Of S3's addresses `test_presigned_addresses` holds it: its fake server checks no signature."""
    offer = await world.offer()
    assert httpx2.get(offer.down["url"], headers=offer.down["headers"], trust_env=False).status_code == 200
    other = offer.down["url"].replace(KEY, KEY[:-1] + "0")
    for method, url, headers in (
        ("GET", other, offer.down["headers"]),
        ("PUT", other, offer.up["headers"]),
        ("GET", offer.up["url"], offer.up["headers"]),
        ("PUT", offer.down["url"], offer.down["headers"]),
        ("DELETE", offer.up["url"], offer.up["headers"]),
        ("GET", offer.down["url"].split("?")[0], {}),
    ):
        answer = httpx2.request(method, url, headers=headers, content=b"x" if method == "PUT" else None)
        assert answer.status_code in {404, 405}, (method, answer.text)


@pytest.mark.parametrize("world", ["s3"], indirect=True)
async def test_presigned_addresses(world: World) -> None:
    """Each is signed for one object, one method and its time, and needs nothing else."""
    assert isinstance(world.staging, S3Staging)
    offer = await world.offer(lifetime_s=1234)
    down, up = (urlsplit(way["url"]) for way in (offer.down, offer.up))
    for url, name in ((down, "in.tar.gz"), (up, "out.tar.gz")):
        said = parse_qs(url.query)
        assert url.path.split("/")[2:] == ["staging", KEY, name]
        assert said["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
        assert said["X-Amz-SignedHeaders"] == ["host"]
        assert said["X-Amz-Expires"] == ["1234"]
    assert down.query != up.query
    assert (offer.down["headers"], offer.up["headers"]) == ({}, {})
    longer = await world.offer(lifetime_s=1e9)
    assert parse_qs(urlsplit(longer.up["url"]).query)["X-Amz-Expires"] == [str(7 * 86_400)]


@pytest.mark.deep
@pytest.mark.timeout(900)
async def test_a_large_workspace_takes_little_memory(world: World) -> None:
    """200 MB in 5 000 files, down and half of it back: the pod's memory does not grow with them."""
    workspace, count = world.workspace, 5_000
    folder = world.folder / "many"
    for n in range(count):
        path = folder / f"d{n % 50}/f{n}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(20_000) * 2)
    await workspace.take_in(Checkout(folder, []), ())
    began = time.monotonic()
    offer = await world.offer()
    offered = time.monotonic()
    pod = world.pod(offer).wait_ready()
    synced = time.monotonic()
    for n in range(0, count, 2):
        with (pod.workspace / f"d{n % 50}/f{n}").open("ab") as file:
            file.write(b"more")
    ended = time.monotonic()
    pod.popen.send_signal(signal.SIGTERM)
    peak = 0
    while pod.popen.poll() is None:
        peak = max(peak, _peak_kib(pod.popen.pid))
        await asyncio.sleep(0.02)
    uploaded = time.monotonic()
    collected = await world.staging.collect(KEY, workspace)
    done = time.monotonic()
    assert pod.popen.returncode == 0, pod.log
    assert collected.failure is None
    assert [file.size for file in collected.changed] == [40_004] * (count // 2)
    assert 10_000 < peak < 80_000, "KiB of the sync container"
    print(
        f"\n{type(world.staging).__name__}, 200 MB in {count} files: offer {offered - began:.1f} s, "
        f"down {synced - offered:.1f} s, half of it back {uploaded - ended:.1f} s, "
        f"collect {done - uploaded:.1f} s, the pod's memory {peak / 1024:.0f} MiB"
    )


def _peak_kib(pid: int) -> int:
    """Return a process' largest resident set since its exec (a parent's would count in `ru_maxrss`)."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in status if line.startswith("VmHWM")), 0)  # none: a zombie


def _escapes() -> dict[str, bytes]:
    link = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
    return {
        "dots": packed(member("workspace/../evil", b"x"), manifest()),
        "more dots": packed(member("../../evil", b"x"), manifest()),
        "absolute": packed(member("/evil", b"x"), manifest()),
        "absolute below": packed(member("workspace//evil", b"x"), manifest()),
        "elsewhere": packed(member("source/evil", b"x"), manifest()),
        "the folder itself": packed(member("workspace", b"x"), manifest()),
        "symlink": packed(member("workspace/l", **link), member("workspace/l/x", b"x"), manifest()),
        "hardlink": packed(member("workspace/l", type=tarfile.LNKTYPE, linkname="workspace/a"), manifest()),
        "device": packed(member("workspace/d", type=tarfile.CHRTYPE, devmajor=1, devminor=3), manifest()),
        "fifo": packed(member("workspace/f", type=tarfile.FIFOTYPE), manifest()),
        "sparse": packed(member("workspace/s", type=tarfile.GNUTYPE_SPARSE), manifest()),
        "global header": packed(member("g", b"11 path=/x\n", type=tarfile.XGLTYPE), manifest()),
        "twice": packed(member("workspace/a", b"1"), member("workspace/a", b"2"), manifest()),
        "file as folder": packed(member("workspace/a", b"1"), member("workspace/a/b", b"2"), manifest()),
        "folder as file": packed(member("workspace/a/b", b"1"), member("workspace/a", b"2"), manifest()),
        "NUL": packed(member("x", b"19 path=workspace/\0a\n", type=tarfile.XHDTYPE), member("y"), manifest()),
        "long header": packed(member("x", b"9" * 20_000, type=tarfile.XHDTYPE), member("y"), manifest()),
        "bad header": packed(member("x", b"99 path=a\n", type=tarfile.XHDTYPE), member("y"), manifest()),
        "negative size": packed(
            member("x", b"11 size=-5\n", type=tarfile.XHDTYPE), member("workspace/y"), manifest()
        ),
        "huge size": packed(
            member("x", b"22 size=9999999999999\n", type=tarfile.XHDTYPE), member("workspace/y"), manifest()
        ),
        "bomb": packed(*(member(f"workspace/{n}", bytes(1_000_000)) for n in range(40)), manifest()),
        "big file": packed(member("workspace/a", bytes(1_000_001)), manifest()),
        "many files": packed(*(member(f"workspace/{n}") for n in range(20)), manifest()),
        "no manifest": packed(member("workspace/a", b"1")),
        "manifest first": packed(manifest(), member("workspace/a", b"1")),
        "manifest of another shape": packed(manifest(removed=[1])),
        "deep manifest": packed(member("manifest.json", b"[" * 100_000)),
        "removes too much": packed(manifest(removed=[f"f{n}" for n in range(100)])),
        "names too much": packed(manifest(skipped=["x"] * 2000)),
        "refuses too much": packed(manifest(refused=[["x", 1]] * 2000)),
        "a size beyond numbers": packed(
            member("manifest.json", b'{"removed":[],"skipped":[],"refused":[["a",1e999]],"whole":true}')
        ),
        "cut": packed(member("workspace/a", os.urandom(5000)), manifest())[:-40],
        "cut early": packed(member("workspace/a", os.urandom(5000)), manifest())[:2000],
        "and more": packed(member("workspace/a", b"1"), manifest()) + packed(member("workspace/b", b"1")),
        "no gzip": b"hello",
        "empty": b"",
        "no tar": packed()[:10],
        "zeros after": packed(manifest()) + bytes(10),
    }


ESCAPES = _escapes()


async def test_hostile_uploads_are_refused_and_write_nothing(world: World) -> None:
    """Whatever a pod sends, its run's files are as they were."""
    await world.workspace.write("a", b"mine")
    offer = await world.offer()
    for name, archive in ESCAPES.items():
        await world.send_back(archive, offer)
        refused = await _refused(world)
        assert "What the tool's pod sent back" in refused, name
        assert await paths(world.workspace) == ["a"], name
        assert await content(world.workspace, "a") == b"mine", name


async def _refused(world: World) -> str:
    try:
        await world.staging.collect(KEY, world.workspace)
    except UploadRefused as error:
        return str(error)
    return "taken in"


def _millions() -> dict[str, bytes]:
    head, rest = b'{"removed":[', b'],"skipped":[],"refused":[],"whole":true}'
    many = 1_000_000
    return {
        "short names": head + b",".join(b'"f%d"' % n for n in range(many)) + rest,
        "empty names": head + b",".join([b'""'] * many) + rest,
        "numbers": head + b",".join([b"0"] * many) + rest,
        "lists": head + b",".join([b"[]"] * many) + rest,
        "keys": b"{" + b",".join(b'"%d":0' % n for n in range(many)) + b"}",
        "one key, often": b"{" + b",".join([b'"removed":[]'] * many) + b"}",
        "quotes in quotes": head + b",".join([b'"\\\\"'] * many) + rest,
        "open brackets": b"[" * many,
    }


MILLIONS = _millions()


@pytest.mark.parametrize("said", MILLIONS.values(), ids=MILLIONS.keys())
def test_a_manifest_of_a_million_entries_is_refused_before_they_become_objects(said: bytes) -> None:
    """Nothing is allocated for them: less memory than an object for each entry would take."""
    limits = WorkspaceLimits(1_000_000, 2_500_000, 12)
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match="more entries than there can be"):
            _manifest(said, limits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(said) + 1_000_000


def test_a_manifest_of_as_much_as_there_can_be_is_read() -> None:
    """Also with names that are full of what JSON escapes."""
    odd = [f'a"\\,[{{}}]\\"{n}' for n in range(1000)]
    removed = [f'dir,[{{"/{n}' for n in range(5000)]
    refused = [[name, 2**63] for name in odd]
    _, said = manifest(removed=removed, skipped=odd, refused=refused)
    found = _manifest(said, WorkspaceLimits(1_000_000, 2_500_000, 5000))
    assert (found.removed, found.skipped, found.failure is not None) == (set(removed), odd, True)


async def test_few_files_in_endless_folders_are_refused(tmp_path: Path) -> None:
    """A folder costs as much of a disk as a file."""
    deep = "d/" * 60
    archive = packed(*(member(f"workspace/{n}/{deep}f") for n in range(1000)), manifest())
    with pytest.raises(UploadRefused, match="more folders"):
        _unpack(io.BytesIO(archive).read, tmp_path, WorkspaceLimits(1000, 1_000_000, 1000))


async def test_names_that_no_workspace_can_hold_are_skipped(world: World) -> None:
    """They are named in the report; removing such a name removes nothing."""
    await world.workspace.write("a", b"mine")
    odd = [".tailrun/log", "back\\slash", "new\nline", "x" * 300, "/".join("d" * 70)]
    await world.send_back(
        packed(
            *(member(f"workspace/{name}", b"x") for name in odd),
            member("workspace/fine", b"x"),
            manifest(removed=["../a", "/a", ".tailrun/log", "never/was"], skipped=["link"]),
        )
    )
    collected = await world.staging.collect(KEY, world.workspace)
    assert collected.skipped == sorted([*odd, "link"])
    assert {file.path: file.size for file in collected.changed} == {"fine": 1, "never/was": -1}
    assert await paths(world.workspace) == ["a", "fine"]


def test_staging_needs_a_way(tmp_path: Path) -> None:
    """Without S3 and without an address of the API the worker says at once what to set."""
    settings = Settings(data_dir=tmp_path)
    with pytest.raises(StagingUnset, match="TOOL_SYNC_URL"):
        open_staging(settings, open_workspaces(settings))
