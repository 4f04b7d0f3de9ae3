"""The sync container as a real process against a store that fails as told."""

from __future__ import annotations

import json
import os
import signal
import ssl
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import trustme
from archive_server import SECRET, ArchiveServer, serving_archive
from staging_world import member, packed
from support.stack import wait_for
from support.tool_pod import SyncProcess

DOWN = packed(
    member("workspace/a", b"a" * 5000, mode=0o755),
    member("workspace/folder/b", os.urandom(200_000)),
    member("source/main.py", b"print()"),
)


class Pods:
    """Starts pods, and looks at the end that none of them told a secret."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[SyncProcess] = []

    def start(self, said: object, **env: str) -> SyncProcess:
        assert isinstance(said, dict)
        pod = SyncProcess(self._folder / f"pod{len(self._started)}", said, **env)
        self._started.append(pod)
        return pod

    def close(self) -> None:
        for pod in self._started:
            pod.close()
            left = [file.read_bytes() for file in pod.shared.rglob("*") if file.is_file()]
            assert SECRET.encode() not in b"".join([pod.log.encode(), *left])


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    pods = Pods(tmp_path)
    yield pods
    pods.close()


def members(archive: bytes) -> dict[str, bytes]:
    """Read what came up with the library, which any other reader would use as well."""
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        return {info.name: file.read() for info in tar if (file := tar.extractfile(info)) is not None}


def came_up(server: ArchiveServer) -> tuple[dict[str, bytes], dict[str, object]]:
    (archive,) = server.uploads
    files = members(archive)
    assert list(files)[-1] == "manifest.json"
    return files, json.loads(files.pop("manifest.json"))


def test_bad_moments_of_the_store_are_survived(pods: Pods) -> None:
    """Errors of the server and cut connections, both ways: what arrives is whole."""
    with serving_archive(DOWN, 503, "cut", 500, "cut") as server:
        pod = pods.start(server.sync_json()).wait_ready()
        assert server.requests == 5
        assert (pod.workspace / "a").read_bytes() == b"a" * 5000
        assert os.access(pod.workspace / "a", os.X_OK)
        assert not os.access(pod.workspace / "folder/b", os.X_OK)
        assert (pod.shared / "source/main.py").read_bytes() == b"print()"
        (pod.workspace / "new").write_bytes(b"new")
        (pod.workspace / "a").unlink()
        server.faults = [503, "cut", 429]
        assert pod.terminate() == 0, pod.log
        files, manifest = came_up(server)
    assert files == {"workspace/new": b"new"}
    assert manifest == {
        "removed": ["a"],
        "skipped": [],
        "refused": [],
        "whole": True,
        "tree": {"folders": [], "links": {}},
    }
    assert [line["k"] for line in pod.said()] == ["synced", "uploaded"]


def test_a_refusal_is_final(pods: Pods) -> None:
    """No second try, also after a restart; the reason is told, and holds no address."""
    with serving_archive(DOWN, 403) as server:
        pod = pods.start(server.sync_json())
        assert pod.wait() == 1
        assert (pod.shared / "failed").read_text() == "status 403 (AccessDenied)"
        assert not (pod.shared / "ready").exists()
        pod.start()
        assert pod.wait() == 1
        assert server.requests == 1
    assert [line["k"] for line in pod.said()] == ["failed", "failed"]


@pytest.mark.parametrize("fault", [503, "drip", "hang"])
def test_time_is_bounded(pods: Pods, fault: int | str) -> None:
    """A store that never answers well, that trickles, or that falls silent, costs its time and no more."""
    with serving_archive(DOWN, *[fault] * 1000) as server:
        pod = pods.start(server.sync_json(), TOOLBOX_DOWNLOAD_S="1")
        assert pod.wait() == 1
    assert "not done within 1 s" in (pod.shared / "failed").read_text()


def test_nobody_listens(pods: Pods) -> None:
    """A store that is away is not a crash."""
    with serving_archive(DOWN) as server:
        said = server.sync_json()
    pod = pods.start(said, TOOLBOX_DOWNLOAD_S="1")
    assert pod.wait() == 1
    assert "Connection refused" in (pod.shared / "failed").read_text()


def test_stopped_while_it_downloads(pods: Pods) -> None:
    """Nothing was there to change, so nothing is sent, and the pod ends at once."""
    with serving_archive(DOWN, "hang") as server:
        pod = pods.start(server.sync_json())
        assert server.hung.wait(60)
        assert pod.terminate() == 0
    assert [line["k"] for line in pod.said()] == ["stopped"]
    assert not (pod.shared / "ready").exists()
    assert server.uploads == []


def test_stopped_before_it_knows_where(pods: Pods, tmp_path: Path) -> None:
    """Waiting between two tries is broken off as well."""
    with serving_archive(DOWN, *[503] * 1000) as server:
        pod = pods.start(server.sync_json())
        wait_for(lambda: server.requests >= 3, "some tries", 60)
        assert pod.terminate() == 0
    assert [line["k"] for line in pod.said()] == ["stopped"]


def test_stopped_again_while_it_uploads(pods: Pods) -> None:
    """A second SIGTERM does not break off what the first one started."""
    with serving_archive(DOWN) as server:
        pod = pods.start(server.sync_json()).wait_ready()
        server.faults = ["hang"]
        pod.popen.send_signal(signal.SIGTERM)
        assert server.hung.wait(60)
        pod.popen.send_signal(signal.SIGTERM)
        pod.popen.send_signal(signal.SIGINT)
        server.released.set()
        assert pod.wait() == 0
        assert len(server.uploads) == 1


@pytest.mark.parametrize(
    ("fault", "reason"), [(403, "status 403"), ("early", "status 413"), (500, "not done")]
)
def test_an_upload_that_fails(pods: Pods, fault: int | str, reason: str) -> None:
    """It ends with 1 and the reason, within its time; `failed` is not for it: the tool did run."""
    with serving_archive(DOWN) as server:
        pod = pods.start(server.sync_json(), TOOLBOX_UPLOAD_S="1").wait_ready()
        (pod.workspace / "big").write_bytes(os.urandom(3_000_000))
        server.faults = [fault] * 1000
        assert pod.terminate() == 1
    assert reason in pod.said()[-1]["m"]
    assert not (pod.shared / "failed").exists()


def test_odd_things_in_a_workspace(pods: Pods) -> None:
    """Links are kept and never followed, special files are named; names may be any bytes."""
    with serving_archive(DOWN) as server:
        pod = pods.start(server.sync_json()).wait_ready()
        here = pod.workspace
        (here / "link").symlink_to(pod.folder / "sync.json")
        (here / "folder link").symlink_to(pod.folder)
        os.mkfifo(here / "pipe")
        Path(os.fsdecode(os.fsencode(here) + b"/\xff")).write_bytes(b"x")
        (here / "new\nline").write_bytes(b"x")
        (here / "folder/b").unlink()
        (here / "folder").rmdir()
        (here / "folder").symlink_to("/etc")
        deep = here / "/".join(["d" * 200] * 15)
        deep.mkdir(parents=True)
        (deep / "x").write_bytes(b"deep")
        assert pod.terminate() == 0, pod.log
        files, manifest = came_up(server)
    assert set(files) == {"workspace/new\nline", f"workspace/{'/'.join(['d' * 200] * 15)}/x"}
    assert manifest["skipped"] == sorted(["pipe", "\\udcff"])
    links = {"folder": "/etc", "folder link": str(pod.folder), "link": str(pod.folder / "sync.json")}
    assert manifest["tree"] == {"folders": [], "links": links}
    assert manifest["removed"] == ["folder/b"]


def test_what_is_over_the_limits_stays(pods: Pods) -> None:
    """Named with its size; the rest goes."""
    with serving_archive(DOWN) as server:
        pod = pods.start(server.sync_json(files=3, bytes=1000, file_bytes=600)).wait_ready()
        for name, size in {"a1": 601, "b1": 600, "c1": 500, "d1": 10, "e1": 10, "f1": 10}.items():
            (pod.workspace / name).write_bytes(bytes(size))
        assert pod.terminate() == 0, pod.log
        files, manifest = came_up(server)
    assert {name: len(data) for name, data in files.items()} == {
        "workspace/b1": 600, "workspace/d1": 10, "workspace/e1": 10
    }  # fmt: skip
    assert manifest["refused"] == [["a1", 601], ["c1", 500], ["f1", 10]]


HOSTILE = {
    "dots": packed(member("workspace/../../evil", b"x")),
    "absolute": packed(member("/tmp/evil", b"x")),
    "elsewhere": packed(member("evil", b"x")),
    "symlink": packed(member("workspace/l", type=tarfile.SYMTYPE, linkname="/")),
    "hardlink": packed(member("workspace/l", type=tarfile.LNKTYPE, linkname="/etc/passwd")),
    "device": packed(member("workspace/d", type=tarfile.BLKTYPE)),
    "NUL": packed(member("x", b"19 path=workspace/\0a\n", type=tarfile.XHDTYPE), member("y")),
    "bomb": packed(*(member(f"workspace/{n}", bytes(10_000_000)) for n in range(9))),
    "too many": packed(*(member(f"workspace/{n}") for n in range(1200))),
    "more behind": DOWN + DOWN,
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_archives_are_refused_at_once(pods: Pods, name: str, tmp_path: Path) -> None:
    """Our own worker packs them, so this is for the day when somebody else does."""
    with serving_archive(HOSTILE[name]) as server:
        pod = pods.start(server.sync_json())
        assert pod.wait() == 1
        assert server.requests == 1
    assert (pod.shared / "failed").exists()
    assert not list(tmp_path.rglob("evil"))


LIMITS = {"files": 1, "bytes": 1}
MALFORMED = {
    "nothing in it": ({}, "sync.json is malformed"),
    "no number": ({"down": {}, "up": {}, "limits": {"files": "x", "bytes": 1}}, "sync.json is malformed"),
    "no address": ({"down": {}}, "the address is malformed"),
    "a file": ({"down": {"url": "file:///etc/passwd"}}, "neither http nor https"),
    "a space": ({"down": {"url": f"http://h/{SECRET} x"}}, "malformed"),
    "a header of two lines": ({"down": {"url": "http://h/", "headers": {"a": f"{SECRET}\n"}}}, "malformed"),
}


@pytest.mark.parametrize("name", list(MALFORMED))
def test_a_malformed_task(pods: Pods, name: str) -> None:
    """It fails with words, and the words hold no address."""
    said, reason = MALFORMED[name]
    pod = pods.start({"up": {}, "limits": LIMITS, **said} if said else said, TOOLBOX_DOWNLOAD_S="1")
    assert pod.wait() == 1
    assert reason in (pod.shared / "failed").read_text()


def test_tls_is_verified(pods: Pods, tmp_path: Path) -> None:
    """With the system's authorities, or those of SSL_CERT_FILE; a stranger's certificate ends it."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with serving_archive(DOWN, tls=tls) as server:
        pod = pods.start(server.sync_json(), SSL_CERT_FILE=str(tmp_path / "ca.pem")).wait_ready()
        assert pod.terminate() == 0
        assert len(server.uploads) == 1
        stranger = pods.start(server.sync_json(), TOOLBOX_DOWNLOAD_S="1")
        assert stranger.wait() == 1
    assert "certificate" in (stranger.shared / "failed").read_text().lower()
