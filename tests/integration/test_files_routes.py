"""Files over HTTP: the real server, over a directory and over S3."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from pydantic import SecretStr
from support.api_server import Api, error_of, serving, settings_for
from support.servers import RedisServer
from support.workspace_contents import let_go

LIMITS = {"file_max_bytes": 1_000_000, "workspace_max_bytes": 2_500_000, "workspace_max_files": 20}


@pytest.fixture(params=["local", "s3"])
def api(
    request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer, sqlite_url: str
) -> Iterator[Api]:
    store: dict[str, object] = {}
    if request.param == "s3":
        store = {
            "s3_bucket": request.getfixturevalue("bucket"),
            "s3_endpoint": request.getfixturevalue("s3_url"),
            "s3_region": "us-east-1",
            "s3_access_key": "k",
            "s3_secret_key": SecretStr("s"),
        }
    with serving(settings_for(tmp_path, redis_server.url, sqlite_url, **LIMITS, **store)) as api:
        yield api


@pytest.fixture
def local_api(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path, redis_server.url, sqlite_url, **LIMITS)) as api:
        yield api


def held_run(client: httpx2.Client) -> str:
    made = client.post("/v1/runs", json={"prompt": "x", "planner": "smoke", "start": False})
    return f"/v1/runs/{made.json()['run_id']}"


def folder_of(api: Api, run: str, user: str = "ada") -> Path:
    """Return where a tool of this run works."""
    folder = api.settings.data.folder / "workspace" / "users" / user / "runs" / run.rsplit("/", 1)[-1]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_a_file_goes_up_and_comes_down(api: Api) -> None:
    ada = api.user("ada")
    run = held_run(ada)
    first = ada.put(f"{run}/files/out/ö%20x.txt", content=b"hello")
    assert first.status_code == 201
    assert first.json()["path"] == "out/ö x.txt"
    assert first.json()["size"] == 5
    assert first.json()["content_type"] == "text/plain"
    again = ada.put(first.headers["Location"], content=b"hello again")
    assert again.status_code == 200
    assert ada.get(f"{run}/files").json() == {"items": [again.json()], "next": None}
    got = ada.get(first.headers["Location"])
    assert (got.status_code, got.content) == (200, b"hello again")
    assert got.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert got.headers["ETag"] == again.headers["ETag"]
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert ada.delete(first.headers["Location"]).status_code == 204
    assert error_of(ada.get(first.headers["Location"])) == (404, "not_found")
    assert error_of(ada.delete(first.headers["Location"])) == (404, "not_found")


def test_files_are_listed_by_prefix(api: Api) -> None:
    ada = api.user("ada")
    run = held_run(ada)
    assert ada.get(f"{run}/files").json() == {"items": [], "next": None}
    for path in ("b/2", "a", "b/1"):
        ada.put(f"{run}/files/{path}", content=b"x")
    listed = [file["path"] for file in ada.get(f"{run}/files").json()["items"]]
    assert listed == ["a", "b/1", "b/2"]
    some = ada.get(f"{run}/files", params={"prefix": "b/"}).json()["items"]
    assert [file["path"] for file in some] == ["b/1", "b/2"]
    assert error_of(ada.get(f"{run}/files", params={"prefix": "../"})) == (422, "invalid_path")


def test_parts_of_a_file_are_served(api: Api) -> None:
    ada = api.user("ada")
    run = held_run(ada)
    data = os.urandom(700_000)
    file = f"{run}/files/data.bin"
    ada.put(file, content=data)

    def part(header: str, **more: str) -> httpx2.Response:
        return ada.get(file, headers={"Range": header, **more})

    for header, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=1000-600000", 1000, 600_001),
        ("bytes=699999-", 699_999, 700_000),
        ("bytes=-5", 699_995, 700_000),
        ("bytes=0-9999999", 0, 700_000),
    ):
        got = part(header)
        assert (got.status_code, got.content) == (206, data[start:end])
        assert got.headers["Content-Range"] == f"bytes {start}-{end - 1}/700000"
        assert got.headers["Content-Length"] == str(end - start)
    for whole in (part("bytes=0-1,5-6"), part("bytes=x"), part("bytes=0-1", **{"If-Range": '"x"'})):
        assert (whole.status_code, whole.content) == (200, data)
        assert whole.headers["Accept-Ranges"] == "bytes"
    outside = part("bytes=700000-")
    assert error_of(outside) == (416, "range_not_satisfiable")
    assert outside.headers["Content-Range"] == "bytes */700000"


def test_a_head_has_the_headers_of_the_download(api: Api) -> None:
    ada = api.user("ada")
    run = held_run(ada)
    ada.put(f"{run}/files/a.json", content=b"{}")
    head, got = ada.head(f"{run}/files/a.json"), ada.get(f"{run}/files/a.json")
    assert (head.status_code, head.content) == (200, b"")
    for name in got.headers.keys() - {"x-request-id", "date"}:
        assert head.headers[name] == got.headers[name]
    assert ada.head(f"{run}/files/none").status_code == 404


def test_who_has_the_file_already_gets_a_304(api: Api) -> None:
    ada = api.user("ada")
    run = held_run(ada)
    tag = ada.put(f"{run}/files/a", content=b"1").headers["ETag"]
    same = ada.get(f"{run}/files/a", headers={"If-None-Match": tag})
    assert (same.status_code, same.content) == (304, b"")
    ada.put(f"{run}/files/a", content=b"22")
    assert ada.get(f"{run}/files/a", headers={"If-None-Match": tag}).content == b"22"


def test_an_empty_file_is_served(api: Api) -> None:
    ada = api.user("ada")
    run = held_run(ada)
    assert ada.put(f"{run}/files/empty", content=b"").status_code == 201
    got = ada.get(f"{run}/files/empty")
    assert (got.status_code, got.content, got.headers["Content-Length"]) == (200, b"", "0")
    assert ada.get(f"{run}/files/empty", headers={"Range": "bytes=0-"}).status_code == 416


def test_active_content_is_a_download_in_a_sandbox(local_api: Api) -> None:
    ada = local_api.user("ada")
    run = held_run(ada)
    for name in ("x.html", "x.svg", "x.xml", "x"):
        ada.put(f"{run}/files/{name}", content=b"<script>alert(1)</script>")
        got = ada.get(f"{run}/files/{name}")
        assert got.headers["Content-Disposition"] == f'attachment; filename="{name}"'
        assert got.headers["Content-Security-Policy"] == "sandbox"


@pytest.mark.parametrize(
    "path", ["..%2fx", "a/..%2f..%2fx", "%2fetc%2fpasswd", "a%00b", "a%5cb", "a%7fb", "a/", "", "%2e%2e/x"]
)
def test_a_path_that_leaves_the_workspace_is_refused(local_api: Api, path: str) -> None:
    """However it is spelt, by every method."""
    ada = local_api.user("ada")
    run = held_run(ada)
    for method in ("GET", "PUT", "DELETE"):
        answered = raw(local_api, ada, method, f"{run}/files/{path}")
        assert b" 422 " in answered.split(b"\r\n")[0], answered
        assert b"invalid_path" in answered


def raw(api: Api, client: httpx2.Client, method: str, target: str, head: str = "") -> bytes:
    """Send a request that no client library has mended; return the whole answer."""
    url = urlsplit(api.url)
    with closing(socket.create_connection((url.hostname, url.port), 20)) as sock:
        auth = client.headers["Authorization"]
        length = "" if "Content-Length" in head else "Content-Length: 0\r\n"
        sock.sendall(
            f"{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {auth}\r\n"
            f"Connection: close\r\n{length}{head}\r\n".encode()
        )
        sock.settimeout(60)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def test_an_upload_over_the_limit_is_refused_before_it_is_read(api: Api) -> None:
    ada = api.user("ada")
    run = held_run(ada)
    answered = raw(api, ada, "PUT", f"{run}/files/a", "Content-Length: 1000001\r\n")
    assert b" 413 " in answered.split(b"\r\n")[0]
    assert ada.get(f"{run}/files").json()["items"] == []


def test_an_upload_without_a_length_is_cut_off_at_the_limit(api: Api) -> None:
    ada = api.user("ada")
    run = held_run(ada)

    def pieces(count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield b"x" * 100_000

    assert error_of(ada.put(f"{run}/files/a", content=pieces(11))) == (413, "too_large")
    assert ada.put(f"{run}/files/b", content=pieces(10)).status_code == 201
    assert ada.put(f"{run}/files/c", content=pieces(10)).status_code == 201
    refused = ada.put(f"{run}/files/d", content=pieces(6))
    assert error_of(refused) == (413, "too_large")
    assert "WORKSPACE_MAX_BYTES" in refused.json()["error"]["message"]
    assert [file["path"] for file in ada.get(f"{run}/files").json()["items"]] == ["b", "c"]


def test_an_upload_that_breaks_off_leaves_nothing(api: Api) -> None:
    ada = api.user("ada")
    run = held_run(ada)
    url = urlsplit(api.url)
    with closing(socket.create_connection((url.hostname, url.port), 20)) as sock:
        sock.sendall(
            f"PUT {run}/files/a HTTP/1.1\r\nHost: x\r\nAuthorization: {ada.headers['Authorization']}\r\n"
            "Content-Length: 900000\r\n\r\n".encode()
            + b"x" * 400_000
        )
    deadline = time.monotonic() + 60
    scratch = api.settings.data.folder / "workspace" / ".scratch"
    while list(scratch.rglob("tmp*/tmp*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ada.get(f"{run}/files").json()["items"] == []


def test_a_part_of_a_file_can_not_be_stored(local_api: Api) -> None:
    ada = local_api.user("ada")
    run = held_run(ada)
    refused = ada.put(f"{run}/files/a", content=b"x", headers={"Content-Range": "bytes 0-0/10"})
    assert error_of(refused) == (400, "invalid_request")


def test_a_file_inside_of_a_file_is_a_conflict(api: Api) -> None:
    ada = api.user("ada")
    run = held_run(ada)
    ada.put(f"{run}/files/a", content=b"x")
    assert error_of(ada.put(f"{run}/files/a/b", content=b"x")) == (409, "conflict")


def test_files_of_others_are_not_there(api: Api) -> None:
    """For another user each route is a 404; an admin sees the owner's files; a stream token sees none."""
    ada, bob = api.user("ada"), api.user("bob")
    run = held_run(ada)
    ada.put(f"{run}/files/a", content=b"x")
    calls = [
        ("GET", "/files"),
        ("GET", "/files/a"),
        ("PUT", "/files/a"),
        ("DELETE", "/files/a"),
        ("GET", "/archive"),
    ]
    stream = ada.post(f"{run}/stream-token").json()["token"]
    for method, path in calls:
        assert error_of(bob.request(method, run + path)) == (404, "not_found")
        assert error_of(api.client(stream).request(method, run + path)) == (401, "unauthorized")
        with_query = api.client().request(method, f"{run}{path}?access_token={stream}")
        assert error_of(with_query) == (401, "unauthorized")
    assert api.admin.get(f"{run}/files/a").content == b"x"
    assert ada.get(f"{run}/files/a").content == b"x"


def test_all_files_come_as_an_archive(api: Api) -> None:
    ada = api.user("ada")
    run = held_run(ada)
    files = {"a": b"", "d/ö.bin": os.urandom(600_000), "d/text": b"line\n" * 1000}
    for path, content in files.items():
        ada.put(f"{run}/files/{path}", content=content)
    zipped = ada.get(f"{run}/archive")
    assert zipped.headers["Content-Type"] == "application/zip"
    assert zipped.headers["Content-Disposition"].endswith('.zip"')
    with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files
    packed = ada.get(f"{run}/archive", params={"format": "tar.gz"})
    assert packed.headers["Content-Disposition"].endswith('.tar.gz"')
    with tarfile.open(fileobj=io.BytesIO(packed.content), mode="r:gz") as archive:
        found = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        assert {name: file.read() for name, file in found.items() if file} == files
    assert error_of(ada.get(f"{run}/archive", params={"format": "rar"})) == (422, "invalid")


def test_an_archive_of_nothing_is_an_archive(local_api: Api) -> None:
    ada = local_api.user("ada")
    run = held_run(ada)
    with zipfile.ZipFile(io.BytesIO(ada.get(f"{run}/archive").content)) as archive:
        assert archive.namelist() == []
    packed = ada.get(f"{run}/archive", params={"format": "tar.gz"}).content
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        assert archive.getnames() == []


def test_what_a_tool_left_lying_neither_hangs_nor_leaks(local_api: Api, tmp_path: Path) -> None:
    """A FIFO, a link out and a device-like file: listed, read and archived are regular files only."""
    ada = local_api.user("ada")
    run = held_run(ada)
    work = folder_of(local_api, run)
    (tmp_path / "secret").write_bytes(b"secret")
    (work / "real").write_bytes(b"x")
    os.mkfifo(work / "fifo")
    (work / "link").symlink_to(tmp_path / "secret")
    (work / "folder").symlink_to(tmp_path)
    (work / "zero").symlink_to("/dev/zero")
    assert [file["path"] for file in ada.get(f"{run}/files").json()["items"]] == ["real"]
    with let_go(work / "fifo"):
        assert error_of(ada.get(f"{run}/files/fifo")) == (404, "not_found")
    for path in ("link", "folder/secret", "zero"):
        assert error_of(ada.get(f"{run}/files/{path}")) == (422, "invalid_path")
        assert error_of(ada.put(f"{run}/files/{path}", content=b"x")) == (422, "invalid_path")
        assert error_of(ada.delete(f"{run}/files/{path}")) == (422, "invalid_path")
    with zipfile.ZipFile(io.BytesIO(ada.get(f"{run}/archive").content)) as archive:
        assert archive.namelist() == ["real"]
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_an_archive_is_whole_while_a_tool_works(local_api: Api) -> None:
    """Files that grow, shrink and vanish under the archive leave it readable."""
    ada = local_api.user("ada")
    run = held_run(ada)
    work = folder_of(local_api, run)
    for n in range(10):
        (work / f"f{n}").write_bytes(b"x" * 50_000)
    done = threading.Event()

    def tool() -> None:
        n = 0
        while not done.is_set():
            n = (n + 1) % 10
            (work / f"f{n}").write_bytes(b"y" * (n * 9_000))
            (work / f"f{(n + 3) % 10}").unlink(missing_ok=True)

    thread, packed_files = threading.Thread(target=tool), 0
    thread.start()
    try:
        for _ in range(20):
            with zipfile.ZipFile(io.BytesIO(ada.get(f"{run}/archive").content)) as archive:
                assert archive.testzip() is None
                packed_files += len(archive.namelist())
            packed = ada.get(f"{run}/archive", params={"format": "tar.gz"}).content
            with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
                assert all(len(archive.extractfile(m).read()) == m.size for m in archive)  # type: ignore[union-attr]
                packed_files += len(archive.getnames())
    finally:
        done.set()
        thread.join()
    assert packed_files > 40, "archives of nothing would show nothing"


def test_who_leaves_in_the_middle_leaves_no_open_file(local_api: Api) -> None:
    ada = local_api.user("ada")
    run = held_run(ada)
    work = folder_of(local_api, run)
    for n in range(2):
        (work / f"f{n}").write_bytes(os.urandom(30_000_000))
    for _ in range(20):
        for path in ("/files/f0", "/archive"):
            with ada.stream("GET", run + path) as answer:
                assert answer.status_code == 200
                next(answer.iter_raw(1024))
    deadline = time.monotonic() + 60
    while open_below(work):
        assert time.monotonic() < deadline, open_below(work)
        time.sleep(0.01)


def open_below(folder: Path) -> list[str]:
    """Return the files below `folder` that this process, in which the server runs, has open."""
    found: list[str] = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(fd.readlink()))
    return [target for target in found if target.startswith(str(folder))]


def test_a_store_that_is_away_is_a_503_that_says_so(
    tmp_path: Path, redis_server: RedisServer, sqlite_url: str
) -> None:
    settings = settings_for(
        tmp_path,
        redis_server.url,
        sqlite_url,
        s3_bucket="nowhere",
        s3_endpoint="http://127.0.0.1:9",
        s3_access_key="k",
        s3_secret_key=SecretStr("very-secret"),
    )
    with serving(settings) as api:
        ada = api.user("ada")
        answered = ada.get(f"{held_run(ada)}/files")
        assert error_of(answered) == (503, "unavailable")
        assert "S3" in answered.text
        assert "very-secret" not in answered.text


def test_the_executable_bit_goes_through(api: Api) -> None:
    """Up with `executable`, down in a header, in both kinds of archive; a replaced file keeps it."""
    ada = api.user("ada")
    run = held_run(ada)
    made = ada.put(f"{run}/files/bin/run.sh", content=b"#!/bin/sh\n", params={"executable": "true"})
    assert (made.status_code, made.headers["X-Executable"]) == (201, "true")
    again = ada.put(f"{run}/files/bin/run.sh", content=b"#!/bin/sh\necho\n")
    assert again.headers["X-Executable"] == "true"
    assert ada.put(f"{run}/files/plain", content=b"x").headers["X-Executable"] == "false"
    for method in ("GET", "HEAD"):
        found = ada.request(method, f"{run}/files/bin/run.sh")
        assert (found.headers["X-Executable"], found.headers["Content-Length"]) == ("true", "15")
        assert ada.request(method, f"{run}/files/plain").headers["X-Executable"] == "false"
    with zipfile.ZipFile(io.BytesIO(ada.get(f"{run}/archive").content)) as zipped:
        modes = {info.filename: info.external_attr >> 16 & 0o777 for info in zipped.infolist()}
    assert modes == {"bin/run.sh": 0o755, "plain": 0o644}
    packed = ada.get(f"{run}/archive", params={"format": "tar.gz"}).content
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert {info.name: info.mode for info in tar} == modes
    assert error_of(ada.put(f"{run}/files/x", content=b"x", params={"executable": "perhaps"}))[0] == 422
