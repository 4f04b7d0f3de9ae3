"""Who may do what: tokens, scopes, other people's runs, stream tokens."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.api_server import TOKEN, Api, error_of, serving, settings_for
from support.servers import RedisServer

from app.core.clock import parse_ts
from app.routes import auth

PROMPT = {"prompt": "x", "planner": "smoke"}
RUN_ROUTES = [
    ("GET", "/v1/runs/{}"),
    ("GET", "/v1/runs/{}/logs"),
    ("GET", "/v1/runs/{}/steps"),
    ("GET", "/v1/runs/{}/stream"),
    ("POST", "/v1/runs/{}/start"),
    ("POST", "/v1/runs/{}/cancel"),
    ("POST", "/v1/runs/{}/retry"),
    ("POST", "/v1/runs/{}/stream-token"),
    ("GET", "/agent/logs/{}"),
    ("GET", "/tasks/{}"),
    ("GET", "/api/v1/operations/{}"),
    ("POST", "/v1/dead/{}/retry"),
    ("DELETE", "/v1/dead/{}"),
]


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path, redis_server.url, sqlite_url)) as api:
        yield api


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "Basic eDp5", "Bearer \xe9\xff", TOKEN])
def test_without_a_valid_token_there_is_a_401(api: Api, header: str | None) -> None:
    """The answer says how to authenticate."""
    headers = {"Authorization": header.encode("latin-1")} if header else {}
    response = api.client().get("/v1/runs", headers=headers)  # pyright: ignore[reportArgumentType]
    assert error_of(response) == (401, "unauthorized")
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_the_body_of_a_stranger_is_not_read(api: Api) -> None:
    """Who has no token learns nothing about the body."""
    assert error_of(api.client().post("/v1/runs", content=b"not json"))[0] == 401
    assert error_of(api.client().post("/agent/execute", content=b"not json"))[0] == 401


@pytest.mark.parametrize(("method", "route"), RUN_ROUTES)
def test_a_run_that_is_not_mine_is_not_there(api: Api, method: str, route: str) -> None:
    """Foreign, unknown and malformed ids are the same 404."""
    foreign = api.user("ada").post("/v1/runs", json=PROMPT).json()["run_id"]
    bob = api.user("bob")
    for run_id in (foreign, str(uuid.uuid4()), "x", foreign.upper(), "%00", "..%2f..", "é"):
        assert error_of(bob.request(method, route.format(run_id))) == (404, "not_found")
    assert error_of(bob.post("/agent/execute", json={"action": "start", "run_id": foreign}))[0] == 404


def test_an_admin_sees_all_runs(api: Api) -> None:
    """Users' runs are open to an admin."""
    run_id = api.user("ada").post("/v1/runs", json=PROMPT).json()["run_id"]
    assert api.admin.get(f"/v1/runs/{run_id}").status_code == 200
    assert api.user("eve", "admin").get(f"/v1/runs/{run_id}").status_code == 200


def test_a_user_cannot_do_what_an_admin_may(api: Api) -> None:
    """Queue internals and tokens are a 403."""
    ada = api.user("ada")
    token_id = api.admin.get("/v1/tokens").json()["items"][0]["token_id"]
    for response in (
        ada.get("/v1/queue"),
        ada.get("/v1/tokens"),
        ada.post("/v1/tokens", json={"user_id": "x"}),
        ada.delete(f"/v1/tokens/{token_id}"),
    ):
        assert error_of(response) == (403, "forbidden")


def test_a_token_is_shown_once_and_ends_when_revoked(api: Api) -> None:
    """The list has no secret; after the DELETE the very next request is a 401."""
    made = api.admin.post("/v1/tokens", json={"user_id": "ada", "name": "laptop"}).json()
    assert (made["user_id"], made["scope"], made["name"], made["expires_at"]) == (
        "ada",
        "user",
        "laptop",
        None,
    )
    listed = api.admin.get("/v1/tokens")
    assert made["token"] not in listed.text
    assert [item["token_id"] for item in listed.json()["items"]] == [made["token_id"]]
    client = api.client(made["token"])
    assert client.get("/v1/runs").status_code == 200
    assert api.admin.delete(f"/v1/tokens/{made['token_id']}").status_code == 204
    assert error_of(client.get("/v1/runs"))[0] == 401
    assert error_of(api.admin.delete(f"/v1/tokens/{made['token_id']}"))[0] == 404
    assert error_of(api.admin.delete("/v1/tokens/unknown"))[0] == 404


def test_a_token_expires(api: Api) -> None:
    """`expires_in_s` is told as a time."""
    made = api.admin.post("/v1/tokens", json={"user_id": "ada", "expires_in_s": 3600}).json()
    assert made["expires_at"] > made["created_at"]
    assert api.client(made["token"]).get("/v1/runs").status_code == 200


def test_a_stream_token_opens_one_stream_and_nothing_else(api: Api) -> None:
    """It reads its own run's stream, from the URL or the header, and every other route refuses it."""
    ada = api.user("ada")
    run_id, other = (ada.post("/v1/runs", json=PROMPT).json()["run_id"] for _ in range(2))
    for each in (run_id, other):
        ada.post(f"/v1/runs/{each}/cancel")
    response = ada.post(f"/v1/runs/{run_id}/stream-token")
    made = response.json()
    assert response.status_code == 201
    stranger, bearer = api.client(), api.client(made["token"])
    assert '"type":"end"' in stranger.get(made["url"]).text
    assert bearer.get(f"/v1/runs/{run_id}/stream").status_code == 200
    query = {"access_token": made["token"]}
    assert error_of(stranger.get(f"/v1/runs/{other}/stream", params=query))[0] == 404
    for path in (f"/v1/runs/{run_id}", f"/v1/runs/{run_id}/logs", "/v1/runs", f"/tasks/{run_id}"):
        assert error_of(stranger.get(path, params=query))[0] == 401
        assert error_of(bearer.get(path))[0] == 401
    assert error_of(bearer.post(f"/v1/runs/{run_id}/cancel"))[0] == 401
    assert error_of(bearer.post(f"/v1/runs/{run_id}/stream-token"))[0] == 401


def test_a_whole_token_does_not_work_in_a_url(api: Api) -> None:
    """What opens everything has no place in histories and proxies' logs."""
    run_id = api.admin.post("/v1/runs", json=PROMPT).json()["run_id"]
    response = api.client().get(f"/v1/runs/{run_id}/stream", params={"access_token": TOKEN})
    assert error_of(response) == (401, "unauthorized")


def test_a_stream_token_expires(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time it opens nothing."""
    run_id = api.admin.post("/v1/runs", json=PROMPT).json()["run_id"]
    made = api.admin.post(f"/v1/runs/{run_id}/stream-token").json()
    expires_at = parse_ts(made["expires_at"])
    url = made["url"] + "&follow=0"
    for now, status in ((expires_at - 1, 200), (expires_at, 401)):
        monkeypatch.setattr(auth, "now_us", lambda now=now: now)
        response = api.client().get(url)
        assert response.status_code == status
    assert error_of(response) == (401, "unauthorized")
