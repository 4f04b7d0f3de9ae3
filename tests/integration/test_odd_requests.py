"""What few clients send: compressed bodies, HTTP/1.0, names with line ends, ids in capitals."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from support.api_server import TOKEN, serving, settings_for
from support.servers import RedisServer

RUN = {"argv": ["true"], "start": False}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("odd")
    with serving(settings_for(folder, shared_redis.url, f"sqlite:///{folder / 'tailrun.db'}")) as server:
        yield server.url


@pytest.fixture
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/runs"), ("PUT", "/v1/runs/{run_id}/files/a")])
def test_a_compressed_body_is_refused(client: httpx2.Client, method: str, path: str) -> None:
    run_id = client.post("/v1/runs", json=RUN).json()["run_id"]
    sent = {"Content-Encoding": "gzip"}
    answer = client.request(method, path.format(run_id=run_id), content=gzip.compress(b"{}"), headers=sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "compressed_body")
    assert answer.headers["accept-encoding"] == "identity"
    plain = {"Content-Encoding": "identity"}
    assert client.post("/v1/runs", json=RUN, headers=plain).status_code == 201


@pytest.mark.parametrize("more", ["", "Connection: keep-alive\r\n"])
@pytest.mark.parametrize("path", ["/healthz", "/v1/runs/{run_id}/stream?follow=0&format=ndjson"])
def test_http_1_0_gets_a_body_that_ends_with_the_connection(
    client: httpx2.Client, url: str, path: str, more: str
) -> None:
    """It knows no chunks, and a stream has no length."""
    run_id = client.post("/v1/runs", json=RUN).json()["run_id"]
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"GET {path.format(run_id=run_id)} HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n{more}\r\n"
        connection.sendall(head.encode())
        got = b"".join(iter(lambda: connection.recv(65536), b""))
    answered, _, body = got.partition(b"\r\n\r\n")
    assert answered.startswith(b"HTTP/1.1 200")
    assert b"transfer-encoding" not in answered.lower()
    assert body == client.get(path.format(run_id=run_id)).content


@pytest.mark.parametrize("name", ["a%0Ab", "a%0A", "%0A", "a%0D%0Ab"])
@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_a_name_with_a_line_end_is_refused_with_a_reason(
    client: httpx2.Client, method: str, name: str
) -> None:
    run_id = client.post("/v1/runs", json=RUN).json()["run_id"]
    answer = client.request(method, f"/v1/runs/{run_id}/files/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_path")


def test_an_id_in_capitals_is_the_same_id(client: httpx2.Client) -> None:
    """Some tools write a UUID so."""
    run_id = client.post("/v1/runs", json=RUN).json()["run_id"]
    assert client.get(f"/v1/runs/{run_id.upper()}").json()["run_id"] == run_id
    assert client.get(f"/v1/runs/{run_id.upper()}/stream?follow=0").status_code == 200
    again = client.post("/v1/runs", json=RUN | {"workspace_from": run_id.upper()})
    assert again.json()["workspace_from"] == run_id
    body = {"cron": "@daily", "run": {"argv": ["true"]}}
    schedule_id = client.post("/v1/schedules", json=body).json()["schedule_id"]
    assert client.get(f"/v1/schedules/{schedule_id.upper()}").json()["schedule_id"] == schedule_id
