"""The two routes of tool pods: what opens them, what bounds them, and what they leave behind."""

from __future__ import annotations

import contextlib
import gzip
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from support.api_server import Api, serving, settings_for
from support.servers import RedisServer
from support.stack import wait_for

from app.config import Settings
from app.main import listen, own_staging_port
from app.storage.api_staging import TOKEN_HEADER, StagedFiles, Way
from app.storage.factory import staged_files, workspace_limits
from app.storage.staging_archive import largest_upload

KEY, OTHER = "tool-00000000000000aa", "tool-00000000000000bb"


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> Iterator[Api]:
    limits = {"file_max_bytes": 1000, "workspace_max_bytes": 1000, "workspace_max_files": 1}
    with serving(settings_for(tmp_path, redis_server.url, sqlite_url, **limits)) as api:
        yield api


@pytest.fixture
def staged(api: Api) -> StagedFiles:
    files = staged_files(api.settings.data)
    for key in (KEY, OTHER):
        files.make(key)
        part = files.begin(key, Way.DOWN)
        part.write(b"archive of " + key.encode())
        part.finish()
        part.discard()
    return files


def ask(api: Api, method: str, key: str, token: str | None, content: bytes | None = None) -> httpx2.Response:
    headers = {} if token is None else {TOKEN_HEADER: token}
    return api.client().request(method, f"/v1/staging/{key}", headers=headers, content=content)


def _uploaded(staged: StagedFiles) -> bytes:
    with staged.open(KEY, Way.UP) as file:
        return file.read()


def places(api: Api) -> list[str]:
    root = api.settings.data.folder / "staging"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_one_key_one_direction_one_while(api: Api, staged: StagedFiles) -> None:
    """The right token does the one thing; anything else is the same 404 as a key that never was."""
    down, up = (staged.token(KEY, way, 600) for way in Way)
    answer = ask(api, "GET", KEY, down)
    assert (answer.status_code, answer.content) == (200, b"archive of " + KEY.encode())
    assert answer.headers["Content-Length"] == str(len(answer.content))
    assert ask(api, "PUT", KEY, up, b"one").status_code == 204
    assert ask(api, "PUT", KEY, up, b"two").status_code == 204
    assert _uploaded(staged) == b"two"
    expires, _, mac = down.partition(".")
    wrong = [
        None,
        "",
        ".",
        up,
        f"{int(expires) + 1}.{mac}",
        f"{expires}.{mac[:-1]}",
        f"{expires}.{mac}0",
        f"-{expires}.{mac}",
        f"{'9' * 5000}.{mac}",
        staged.token(OTHER, Way.DOWN, 600),
        staged.token(KEY, Way.DOWN, -1),
    ]
    for token in wrong:
        assert ask(api, "GET", KEY, token).status_code == 404, token
    for token in (None, down, staged.token(OTHER, Way.UP, 600), staged.token(KEY, Way.UP, -1)):
        assert ask(api, "PUT", KEY, token, b"evil").status_code == 404, token
    assert api.admin.get(f"/v1/staging/{KEY}").status_code == 404
    assert _uploaded(staged) == b"two"


@pytest.mark.parametrize("key", ["tool-never", "..%2f..%2fetc", ".secret", "TOOL", "a" * 64, "%00"])
def test_keys_that_are_none(api: Api, staged: StagedFiles, key: str) -> None:
    """Also with a token that would fit, nothing outside of the keys' places is reached."""
    for method, way in (("GET", Way.DOWN), ("PUT", Way.UP)):
        answer = ask(api, method, key, staged.token(key, way, 600), b"x" if method == "PUT" else None)
        assert answer.status_code == 404
    assert places(api) == [".secret", f"{KEY}/in.tar.gz", f"{OTHER}/in.tar.gz"]


def test_nothing_was_ever_staged(api: Api) -> None:
    """An API that carries no files has no secret to guess, and makes none for a stranger."""
    assert ask(api, "GET", KEY, f"{int(time.time()) + 60}.{'0' * 64}").status_code == 404
    assert not (api.settings.data.folder / "staging").exists()


def test_an_upload_is_bounded(api: Api, staged: StagedFiles) -> None:
    """Announced or not, too much is refused, and leaves nothing."""
    limit = largest_upload(workspace_limits(api.settings.storage))
    token = staged.token(KEY, Way.UP, 600)
    before = places(api)
    assert ask(api, "PUT", KEY, token, bytes(limit + 1)).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(limit // 65_536 + 2):
            yield bytes(65_536)

    answer = api.client().put(f"/v1/staging/{KEY}", headers={TOKEN_HEADER: token}, content=endless())
    assert answer.status_code == 413
    wait_for(lambda: places(api) == before, "the part to be removed", 60)
    assert ask(api, "PUT", KEY, token, bytes(limit)).status_code == 204


def test_an_upload_that_breaks_off_leaves_nothing(api: Api, staged: StagedFiles) -> None:
    """Whole or not at all: what had come before stays."""
    token = staged.token(KEY, Way.UP, 600)
    assert ask(api, "PUT", KEY, token, b"whole").status_code == 204
    before = places(api)
    url = urlsplit(api.url)
    with socket.create_connection((url.hostname or "", url.port or 0)) as sock:
        head = [
            f"PUT /v1/staging/{KEY} HTTP/1.1",
            "Host: x",
            f"{TOKEN_HEADER}: {token}",
            "Content-Length: 600000",
        ]
        sock.sendall("\r\n".join([*head, "", ""]).encode() + bytes(300_000))
        wait_for(lambda: len(places(api)) > len(before), "the part", 60)
    wait_for(lambda: places(api) == before, "the part to be removed", 60)
    assert _uploaded(staged) == b"whole"


def test_one_token_has_one_upload_on_the_disk(api: Api, staged: StagedFiles) -> None:
    """However many connections bring it, and keep silent; the last one is taken."""
    token = staged.token(KEY, Way.UP, 600)
    url = urlsplit(api.url)
    head = [
        f"PUT /v1/staging/{KEY} HTTP/1.1",
        "Host: x",
        f"{TOKEN_HEADER}: {token}",
        "Content-Length: 600000",
    ]
    start = "\r\n".join([*head, "", ""]).encode() + bytes(300_000)
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            sock = stack.enter_context(socket.create_connection((url.hostname or "", url.port or 0)))
            before = parts(api)
            sock.sendall(start)
            wait_for(lambda: len(parts(api)) == 1 and parts(api) != before, "its part alone", 60)  # noqa: B023
        assert sum(open_parts(api)) <= 600_000, "what is held open counts as well"
        sock.sendall(bytes(300_000))
        assert b" 204 " in sock.recv(4096).splitlines()[0]
        assert len(_uploaded(staged)) == 600_000
        wait_for(lambda: sum(open_parts(api)) == 0, "no bytes held open", 60)
    assert parts(api) == []


def test_an_upload_that_was_overtaken_says_so(api: Api, staged: StagedFiles) -> None:
    token = staged.token(KEY, Way.UP, 600)

    def slow() -> Iterator[bytes]:
        yield bytes(300_000)
        wait_for(lambda: len(parts(api)) == 1, "its part", 60)
        assert ask(api, "PUT", KEY, token, b"the later one").status_code == 204
        yield bytes(300_000)

    answer = api.client().put(f"/v1/staging/{KEY}", headers={TOKEN_HEADER: token}, content=slow())
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "superseded")
    assert _uploaded(staged) == b"the later one"
    assert parts(api) == []


def test_what_a_killed_process_left_goes_with_the_next_upload(api: Api, staged: StagedFiles) -> None:
    for _ in range(3):
        staged.begin(KEY, Way.UP).file.close()
    assert len(parts(api)) == 1
    assert ask(api, "PUT", KEY, staged.token(KEY, Way.UP, 600), b"x").status_code == 204
    assert parts(api) == []


def parts(api: Api) -> list[str]:
    return [place for place in places(api) if ".part-" in place]


def open_parts(api: Api) -> list[int]:
    """Return the sizes of parts that this process holds open, removed ones too."""
    found: dict[int, int] = {}
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if ".part-" in str(fd.readlink()):
                about = fd.stat()
                found[about.st_ino] = about.st_size
    return list(found.values())


def test_what_was_dropped_takes_no_more(api: Api, staged: StagedFiles) -> None:
    """A pod that comes late can't leave an archive that nobody will ever ask for."""
    tokens = {way: staged.token(KEY, way, 600) for way in Way}
    staged.drop(KEY)
    assert ask(api, "GET", KEY, tokens[Way.DOWN]).status_code == 404
    assert ask(api, "PUT", KEY, tokens[Way.UP], gzip.compress(b"x")).status_code == 404
    assert places(api) == [".secret", f"{OTHER}/in.tar.gz"]


@pytest.mark.usefixtures("redis_server")
def test_a_port_of_its_own_has_the_staging_routes_and_nothing_else(
    tmp_path: Path, redis_server: RedisServer, sqlite_url: str
) -> None:
    """Tools reach one port; on it no token opens the API, and on the API's no token opens an archive."""
    with contextlib.closing(listen("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        settings = settings_for(tmp_path, redis_server.url, sqlite_url, staging_port=port)
        with serving(settings, more=[sock]) as api:
            staged = staged_files(settings.data)
            staged.make(KEY)
            token = staged.token(KEY, Way.UP, 600)
            assert ask(api, "PUT", KEY, token, b"x").status_code == 404
            with httpx2.Client(
                base_url=f"http://127.0.0.1:{port}", headers=dict(api.admin.headers), trust_env=False
            ) as pod:
                name = {TOKEN_HEADER: token}
                assert pod.put(f"/v1/staging/{KEY}", headers=name, content=b"x").status_code == 204
                closed = (
                    "/",
                    "/healthz",
                    "/readyz",
                    "/metrics",
                    "/v1/runs",
                    "/docs",
                    "/v1/staging",
                    "/v1/queue",
                )
                lies = {"Host": f"127.0.0.1:{urlsplit(api.url).port}", "X-Forwarded-Port": "8080"}
                for path in (*closed, "//v1/staging/", "/v1/staging/../runs", "/openapi.json"):
                    for headers in ({}, lies):
                        assert pod.get(path, headers=headers).status_code == 404, path
                assert pod.post("/v1/runs", json={"steps": []}).status_code == 404
            assert api.admin.get("/v1/runs").status_code == 200
            assert _uploaded(staged) == b"x"


def test_the_same_port_is_no_port_of_its_own() -> None:
    assert own_staging_port(Settings(port=8080, staging_port=8080).api) is None
    assert own_staging_port(Settings(port=8080).api) is None
    assert own_staging_port(Settings(port=8080, staging_port=8081).api) == 8081


def test_api_and_worker_agree_on_the_secret(tmp_path: Path) -> None:
    """Whoever comes first makes it; it is nobody else's to read."""
    one, other = StagedFiles(tmp_path / "staging"), StagedFiles(tmp_path / "staging")
    assert other.opens(one.token(KEY, Way.UP, 60), KEY, Way.UP)
    assert one.opens(other.token(KEY, Way.DOWN, 60), KEY, Way.DOWN)
    assert (tmp_path / "staging/.secret").stat().st_mode & 0o077 == 0
    assert not StagedFiles(tmp_path / "else").opens(one.token(KEY, Way.UP, 60), KEY, Way.UP)
