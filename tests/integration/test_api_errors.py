"""Every error has one shape and a clear message, and costs nothing that was accepted before."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.api_server import TOKEN, Api, error_of, serving, settings_for
from support.servers import RedisServer

from app.db.run_store import RunStore

ROUTES = ["/v1/runs", "/agent/execute", "/tasks", "/api/v1/operations", "/v1/tokens"]


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path, redis_server.url, sqlite_url)) as api:
        yield api


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"prompt=hello", "not valid JSON"),
        (b'{"prompt": "x"', "not valid JSON"),
        (b'{"prompt": NaN}', "not valid JSON"),
        (b'{"prompt": "\xff\xfe"}', "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nested deeper"),
    ],
)
def test_a_body_that_is_no_json_object_is_a_400(api: Api, route: str, body: bytes, says: str) -> None:
    """On every route that takes a body, with the reason."""
    response = api.admin.post(route, content=body)
    assert error_of(response) == (400, "invalid_request")
    assert says in response.json()["error"]["message"]


@pytest.mark.parametrize("route", ROUTES)
def test_a_20_mb_body_is_a_413(api: Api, route: str) -> None:
    """Announced or chunked; the server goes on."""
    response = api.admin.post(route, content=b'{"prompt": "' + b"x" * 20_000_000 + b'"}')
    assert error_of(response) == (413, "too_large")
    chunked = api.admin.post(route, content=(b"x" * 65_536 for _ in range(320)))
    assert error_of(chunked) == (413, "too_large")
    assert api.admin.get("/v1/runs").status_code == 200


def test_an_endless_body_is_cut_off(api: Api) -> None:
    """The 413 comes while the client is still sending, not after it has sent everything."""
    where = urlsplit(api.url)
    head = f"POST /v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection((where.hostname, where.port), timeout=60) as sock:
        sock.sendall(head.encode())
        sock.setblocking(False)
        answer, sent = b"", 0
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while b"too_large" not in answer and sent < 100_000_000:
                with contextlib.suppress(BlockingIOError):
                    sent += sock.send(piece[sent % len(piece) :])
                with contextlib.suppress(BlockingIOError):
                    answer += sock.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 413")
    assert sent < 50_000_000


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({"action": "explode"}, "unknown_action", "create, start, cancel, status"),
        ({"action": ["create"]}, "unknown_action", "create, start, cancel, status"),
        ({}, "unknown_action", "action is missing"),
        ({"action": "start"}, "invalid", "run_id is required"),
        ({"action": "create"}, "invalid", "exactly one of"),
        ({"action": "create", "prompt": "x", "start": True}, "invalid", "start is not a field"),
        ({"action": "create", "prompt": "x", "steps": []}, "invalid", "prompt and steps"),
        ({"action": "cancel", "run_id": "x", "why": "?"}, "invalid", "why is not a field"),
        ({"action": "start", "run_id": 5}, "invalid", "run_id must be a string"),
    ],
)
def test_execute_says_what_it_takes(api: Api, body: dict[str, object], code: str, says: str) -> None:
    """An unknown action names the four; a wrong field is named."""
    response = api.admin.post("/agent/execute", json=body)
    assert error_of(response) == (422, code)
    assert says in response.json()["error"]["message"]


def test_what_is_not_there_and_what_is_not_allowed_have_our_shape(api: Api) -> None:
    """Also where the framework answers by itself."""
    assert error_of(api.client().get("/nowhere")) == (404, "not_found")
    response = api.client().put("/v1/runs")
    assert error_of(response) == (405, "method_not_allowed")
    assert {"GET", "POST"} <= set(re.findall("[A-Z]+", response.json()["error"]["message"]))
    assert error_of(api.client().get("/v1/runs/"))[0] == 404


def test_an_unexpected_error_tells_its_request_and_nothing_else(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The details are in the log, under the id that the answer names."""

    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("the secret detail")

    monkeypatch.setattr(RunStore, "page", broken)
    response = api.admin.get("/v1/runs", headers={"X-Request-ID": "my-request.1"})
    assert error_of(response) == (500, "internal")
    assert "my-request.1" in response.json()["error"]["message"]
    assert "secret" not in response.text
    assert response.headers["X-Request-ID"] == "my-request.1"


@pytest.mark.parametrize("sent", ["a b", "x" * 129, "é"])
def test_every_answer_has_a_request_id(api: Api, sent: str) -> None:
    """One that could disturb a log is replaced."""
    response = api.client().get("/healthz", headers=[(b"X-Request-ID", sent.encode())])
    assert response.headers["X-Request-ID"] != sent
    assert len(response.headers["X-Request-ID"]) == 32


def test_the_server_does_not_say_what_it_is(api: Api) -> None:
    """No Server header."""
    assert "server" not in api.client().get("/healthz").headers


def test_origins_are_allowed_by_setting(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> None:
    """Those that are listed, also on errors; others, and nobody by default, get no header."""
    origins = "https://a.example, https://b.example"
    with serving(settings_for(tmp_path, redis_server.url, sqlite_url, cors_origins=origins)) as api:
        preflight = {
            "Origin": "https://b.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,idempotency-key",
        }
        response = api.client().options("/v1/runs", headers=preflight)
        assert response.status_code == 200
        assert response.headers["Access-Control-Allow-Origin"] == "https://b.example"
        refused = api.client().get("/v1/runs", headers={"Origin": "https://b.example"})
        assert error_of(refused)[0] == 401
        assert refused.headers["Access-Control-Allow-Origin"] == "https://b.example"
        stranger = api.client().get("/healthz", headers={"Origin": "https://c.example"})
        assert "Access-Control-Allow-Origin" not in stranger.headers


def test_no_origin_is_allowed_by_default(api: Api) -> None:
    """A browser on another site cannot use the API."""
    response = api.client().get("/healthz", headers={"Origin": "https://a.example"})
    assert "Access-Control-Allow-Origin" not in response.headers
