"""HEAD wherever GET is answered, and what a method that is not there is answered with."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.api_server import Api, error_of, serving, settings_for
from support.servers import RedisServer

from app.config import Settings
from app.main import create_app

DOCUMENT: dict[str, Any] = create_app(Settings()).openapi()
GETS = sorted(path for path, methods in DOCUMENT["paths"].items() if "get" in methods)
PAGES = ["/", "/docs", "/openapi.json"]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("head")
    settings = settings_for(folder, shared_redis.url, f"sqlite:///{folder / 'db.sqlite'}")
    with serving(settings) as api:
        yield api


@pytest.fixture(scope="module")
def values(api: Api) -> dict[str, str]:
    """What stands in the paths: a held run with a file, whose stream would never end."""
    run_id = api.admin.post("/v1/runs", json={"argv": ["true"], "start": False}).json()["run_id"]
    api.admin.put(f"/v1/runs/{run_id}/files/a.txt", content=b"content")
    new = {"cron": "@daily", "run": {"argv": ["true"]}}
    schedule_id = api.admin.post("/v1/schedules", json=new).json()["schedule_id"]
    return {"run_id": run_id, "path": "a.txt", "schedule_id": schedule_id, "project_id": "default"}


@pytest.mark.parametrize("path", [*GETS, *PAGES])
def test_head_is_answered_as_get_is_but_for_the_body(api: Api, values: dict[str, str], path: str) -> None:
    where = re.sub(r"\{(\w+)\}", lambda name: values.get(name[1], "none"), path)
    began = time.monotonic()
    head = api.admin.head(where)
    assert time.monotonic() - began < 20, "a stream must not hold it"
    with api.admin.stream("GET", where) as got:
        assert head.status_code == got.status_code != 405
        same = ("content-type", "etag", "content-disposition", "location")
        assert {name: head.headers.get(name) for name in same} == {
            name: got.headers.get(name) for name in same
        }
    assert head.content == b""
    assert head.headers["X-Request-ID"]


def test_head_needs_the_token_that_get_needs(api: Api, values: dict[str, str]) -> None:
    assert api.client().head(f"/v1/runs/{values['run_id']}").status_code == 401
    assert api.user("bob").head(f"/v1/runs/{values['run_id']}").status_code == 404
    assert api.client().head("/healthz").status_code == 200


def test_a_connection_goes_on_after_a_head(api: Api, values: dict[str, str]) -> None:
    client = api.admin
    for _ in range(3):
        assert client.head(f"/v1/runs/{values['run_id']}/archive").status_code == 200
        assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "allowed", "hint"),
    [
        ("DELETE", "/v1/runs", "GET, HEAD, POST", "POST /v1/runs/{run_id}/cancel"),
        ("DELETE", "/v1/runs/0b5c8a52-5c0e-4a55-9d0c-7f4f3f6e2a11", "GET, HEAD", "/cancel"),
        ("PUT", "/v1/schedules", "GET, HEAD, POST", "DELETE /v1/schedules/{id}"),
        ("DELETE", "/v1/tokens", "GET, HEAD, POST", "DELETE /v1/tokens/{id}"),
        ("GET", "/agent/execute", "POST", "use POST"),
        ("HEAD", "/agent/execute", "POST", ""),
    ],
)
def test_another_method_is_told_all_that_there_are(
    api: Api, method: str, path: str, allowed: str, hint: str
) -> None:
    refused = api.admin.request(method, path)
    assert (refused.status_code, refused.headers["Allow"]) == (405, allowed)
    if method != "HEAD":
        assert error_of(refused) == (405, "method_not_allowed")
        assert hint in refused.json()["error"]["message"]


def test_the_front_door_leads_to_the_documents(api: Api) -> None:
    """A browser gets there; a program is told where things are."""
    page = api.client().get("/", headers={"Accept": "text/html,application/xhtml+xml"})
    assert (page.status_code, page.headers["Location"]) == (307, "docs")
    told = api.client().get("/").json()
    assert told["docs"] == "/docs"
    for path in told.values():
        if path.startswith("/"):
            assert api.client().get(path).status_code in {200, 401}
