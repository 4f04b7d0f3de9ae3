"""`Idempotency-Key`: every POST that makes something makes it once, however often it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from support.api_server import Api, error_of, serving, settings_for
from support.servers import RedisServer

from app.config import Settings
from app.main import create_app

AGENT = {"project": "default", "type": "agent", "command": "run", "params": {"input": "x"}}
MAKES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # route → the id in its answer, a body, another body
    "/v1/runs": ("run_id", {"argv": ["true"]}, {"argv": ["false"]}),
    "/agent/execute": ("run_id", {"action": "create", "argv": ["a"]}, {"action": "create", "argv": ["b"]}),
    "/execute": ("run_id", {"action": "create", "argv": ["a"]}, {"action": "create", "argv": ["b"]}),
    "/tasks": ("task_id", AGENT, AGENT | {"params": {"input": "y"}}),
    "/api/v1/operations": (
        "operation_id",
        {"app_signature": "agent/run", "operation_request_json": '{"input": "x"}'},
        {"app_signature": "agent/run", "operation_request_json": '{"input": "y"}'},
    ),
    "/v1/schedules": (
        "schedule_id",
        {"cron": "@daily", "run": {"argv": ["true"]}},
        {"cron": "@hourly", "run": {"argv": ["true"]}},
    ),
    "/v1/tokens": ("token_id", {"user_id": "eve", "expires_in_s": 60}, {"user_id": "eve", "scope": "admin"}),
}
OTHERS = {
    "/v1/runs/{run_id}/retry": "a test of its own",
    "/v1/dead/{run_id}/retry": "a test of its own",
    "/v1/runs/{run_id}/stream-token": "a test of its own",
    "/v1/dead/retry": "makes one run of each letter, and the letters go",
    "/v1/runs/{run_id}/start": "changes, and changes nothing again",
    "/v1/runs/{run_id}/cancel": "changes, and changes nothing again",
    "/v1/runs/{run_id}/approvals/{step}": "is decided once, and a 409 from then on",
    "/v1/runs/{run_id}/messages": "kept once, with a 202 each time: test_api_agents.py",
}


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, database_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path, redis_server.url, database_url)) as api:
        yield api


def same(key: str = "same") -> dict[str, str]:
    return {"Idempotency-Key": key}


def five_times(send: Callable[[], httpx2.Response], name: str) -> str:
    """Send at once and one after the other; return the one id that all answers have."""
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: send(), range(3)))
    answers += [send(), send()]
    assert {answer.status_code for answer in answers} <= {200, 201}, [answer.text for answer in answers]
    assert [answer.status_code for answer in answers].count(201) == 1
    [one] = {answer.json()[name] for answer in answers}
    return one


def test_each_post_is_known() -> None:
    """A new POST fails here until it is said what repeating it does."""
    document: dict[str, Any] = create_app(Settings()).openapi()
    posts = {path for path, methods in document["paths"].items() if "post" in methods}
    assert posts == MAKES.keys() | OTHERS.keys()


@pytest.mark.parametrize("path", MAKES)
def test_a_post_with_a_key_makes_one_thing(api: Api, path: str) -> None:
    """A proxy or client that repeats it gets the same thing; another body under the same key is refused."""
    name, body, other = MAKES[path]
    first = five_times(lambda: api.admin.post(path, json=body, headers=same()), name)
    assert error_of(api.admin.post(path, json=other, headers=same())) == (409, "idempotency_key_reused")
    assert api.admin.post(path, json=body, headers=same("next")).json()[name] != first
    assert api.admin.post(path, json=body).json()[name] != first
    for key in ("", "x" * 256, "\x07"):
        assert api.admin.post(path, json=body, headers=same(key)).status_code in {400, 422}


@pytest.mark.parametrize("path", [path for path in MAKES if path != "/v1/tokens"])
def test_a_key_is_its_users_own(api: Api, path: str) -> None:
    name, body, _ = MAKES[path]
    mine = api.user("ada").post(path, json=body, headers=same())
    theirs = api.user("bob").post(path, json=body, headers=same())
    assert mine.status_code == theirs.status_code == 201
    assert mine.json()[name] != theirs.json()[name]


def ended(client: httpx2.Client) -> str:
    run_id: str = client.post("/v1/runs", json={"argv": ["true"], "start": False}).json()["run_id"]
    assert client.post(f"/v1/runs/{run_id}/cancel").json()["status"] == "cancelled"
    return run_id


def test_a_retry_makes_one_run(api: Api) -> None:
    ada = api.user("ada")
    one, two = ended(ada), ended(ada)
    five_times(lambda: ada.post(f"/v1/runs/{one}/retry", headers=same()), "run_id")
    assert error_of(ada.post(f"/v1/runs/{two}/retry", headers=same())) == (409, "idempotency_key_reused")
    assert len(ada.get("/v1/runs").json()["items"]) == 3


def dead_letter(redis: RedisServer, run_id: str, user_id: str) -> None:
    entry = {"run_id": run_id, "user_id": user_id}
    letter = {"run_id": run_id, "entry": entry, "reason": "poison", "error": None, "raw": "", "at": "t"}
    with redis.client() as client:
        client.lpush("jobs:dead", orjson.dumps(letter))


def test_a_dead_letters_retry_makes_one_run_also_once_the_letter_is_gone(
    api: Api, redis_server: RedisServer
) -> None:
    ada = api.user("ada")
    run_id = ended(ada)
    dead_letter(redis_server, run_id, "ada")
    path = f"/v1/dead/{run_id}/retry"
    first = ada.post(path, headers=same())
    assert first.status_code == 201, first.text
    again = [ada.post(path, headers=same()) for _ in range(4)]
    assert {answer.status_code for answer in again} == {200}
    assert {answer.json()["run_id"] for answer in again} == {first.json()["run_id"]}
    assert error_of(ada.post(path))[0] == 404


def test_a_tokens_secret_is_in_the_first_answer_alone(api: Api) -> None:
    """It is not kept, so a repeated request can't have it; there is one token all the same."""
    ask = {"user_id": "eve"}
    first = api.admin.post("/v1/tokens", json=ask, headers=same())
    again = api.admin.post("/v1/tokens", json=ask, headers=same())
    assert (first.status_code, again.status_code) == (201, 200)
    assert (again.json()["token_id"], again.json()["token"]) == (first.json()["token_id"], None)
    assert api.client(first.json()["token"]).get("/v1/runs").status_code == 200
    assert [token["user_id"] for token in api.admin.get("/v1/tokens").json()["items"]] == ["eve"]


def test_a_stream_token_is_made_once(api: Api) -> None:
    ada = api.user("ada")
    one, two = ended(ada), ended(ada)
    answers = [ada.post(f"/v1/runs/{one}/stream-token", headers=same()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 200, 200]
    assert answers[0].json()["url"]
    assert [answer.json()["url"] for answer in answers[1:]] == [None, None]
    assert ada.post(f"/v1/runs/{two}/stream-token", headers=same()).status_code == 201
