"""Dead letters over HTTP: show, retry and drop, one, many and all, also of entries that were none."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from support.api_server import Api, error_of, serving, settings_for
from support.servers import RedisServer

from app.core.events import Event, EventType
from app.core.models import Fence, RunStatus
from app.db.run_store import Batch, Outcome, RunStore
from tailrun.process.lines import Level, Stream

PROMPT = {"prompt": "x", "planner": "smoke"}
ERROR = {"code": "executor_unavailable", "message": "gone"}


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, database_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path, redis_server.url, database_url)) as api:
        yield api


def dead_run(api: Api, redis: RedisServer, client: httpx2.Client) -> str:
    """Make a run that failed for good after some lines, and its letter."""
    run_id = client.post("/v1/runs", json=PROMPT).json()["run_id"]

    async def work(store: RunStore) -> None:
        [run] = await store.claim([run_id], "w1", 5)
        top = run.last_seq
        lines = [
            Event(top + n, EventType.LOG, 5 + n, run_id, 1, Level.INFO, Stream.STDOUT, "s1", f"line {n}")
            for n in range(1, 31)
        ]
        end = Event(top + 31, EventType.END, 99, run_id, 1, data={"status": "failed", "error": ERROR})
        batch = Batch(events=[*lines, end], outcome=Outcome(RunStatus.FAILED, error=ERROR))
        await store.commit(Fence(run_id, 1, "w1"), top, batch)

    api.store(work)
    dead_letter(redis, {"run_id": run_id, "entry": {"run_id": run_id}})
    with redis.client() as redis_client:
        redis_client.delete("jobs:pending")
    return run_id


def dead_letter(redis: RedisServer, letter: dict[str, Any]) -> None:
    body = {"run_id": None, "reason": "retries_exhausted", "error": ERROR, "at": "t", "raw": ""} | letter
    with redis.client() as client:
        client.lpush("jobs:dead", orjson.dumps(body))


def listed(client: httpx2.Client) -> list[dict[str, Any]]:
    return client.get("/v1/dead").json()["items"]


def test_a_letter_is_shown_with_its_run_and_the_end_of_its_log(api: Api, redis_server: RedisServer) -> None:
    """By the run's id or by its own; somebody else's is a 404."""
    ada, bob = api.user("ada"), api.user("bob")
    run_id = dead_run(api, redis_server, ada)
    shown = ada.get(f"/v1/dead/{run_id}").json()
    assert (shown["reason"], shown["error"]) == ("retries_exhausted", ERROR)
    assert (shown["run"]["run_id"], shown["run"]["status"]) == (run_id, "failed")
    assert [event.get("content") for event in shown["logs"]][-3:] == ["line 29", "line 30", None]
    assert len(shown["logs"]) == 20
    assert ada.get(f"/v1/dead/{shown['id']}").json() == shown
    assert len(ada.get(f"/v1/dead/{run_id}", params={"logs": 2}).json()["logs"]) == 2
    assert error_of(bob.get(f"/v1/dead/{run_id}"))[0] == 404
    assert error_of(bob.get(f"/v1/dead/{shown['id']}"))[0] == 404


def test_a_malformed_letter_has_an_id(api: Api, redis_server: RedisServer) -> None:
    """An admin sees and drops it by that; there is nothing to retry."""
    dead_letter(redis_server, {"reason": "malformed", "error": None, "raw": "}{"})
    with redis_server.client() as client:
        client.lpush("jobs:dead", "not even a letter")
    [unreadable, malformed] = listed(api.admin)
    assert (unreadable["reason"], malformed["raw"]) == ("unreadable", "}{")
    assert api.admin.get(f"/v1/dead/{malformed['id']}").json()["run"] is None
    assert listed(api.user("ada")) == []
    assert api.admin.post("/v1/dead/retry", json={"all": True}).json() == {
        "items": [],
        "refused": [],
        "left": 0,
    }
    assert api.admin.delete(f"/v1/dead/{malformed['id']}").status_code == 204
    assert listed(api.admin) == [unreadable]
    assert api.admin.delete("/v1/dead", params={"id": unreadable["id"]}).json() == {"dropped": 1}


def test_many_are_retried_at_once(api: Api, redis_server: RedisServer) -> None:
    """Each as a new run with `retry_of`; those that can't be are named, and the others go on."""
    ada, bob = api.user("ada"), api.user("bob")
    mine = [dead_run(api, redis_server, ada) for _ in range(3)]
    theirs = dead_run(api, redis_server, bob)
    running = ada.post("/v1/runs", json=PROMPT).json()["run_id"]
    dead_letter(redis_server, {"run_id": running})
    answer = ada.post("/v1/dead/retry", json={"run_ids": [mine[0], mine[1], theirs, running]}).json()
    assert {item["run_id"] for item in answer["items"]} == set(mine[:2])
    assert {item["run_id"] for item in answer["refused"]} == {theirs, running}
    assert answer["left"] == 0
    for item in answer["items"]:
        assert ada.get(f"/v1/runs/{item['retried_as']}").json()["retry_of"] == item["run_id"]
    assert {letter["run_id"] for letter in listed(ada)} == {mine[2], running}


def test_all_are_retried_by_user_or_by_admin(api: Api, redis_server: RedisServer) -> None:
    """A user's `all` are their own; a retried run stays its user's, whoever asked."""
    ada, bob = api.user("ada"), api.user("bob")
    mine, theirs = dead_run(api, redis_server, ada), dead_run(api, redis_server, bob)
    dead_letter(redis_server, {"run_id": "no-run", "reason": "unknown_run"})
    assert [item["run_id"] for item in ada.post("/v1/dead/retry", json={"all": True}).json()["items"]] == [
        mine
    ]
    [made] = api.admin.post("/v1/dead/retry", json={"all": True}).json()["items"]
    assert made["run_id"] == theirs
    assert bob.get(f"/v1/runs/{made['retried_as']}").json()["user_id"] == "bob"
    assert [letter["run_id"] for letter in listed(api.admin)] == ["no-run"]


@pytest.mark.parametrize("body", [{}, {"all": False}, {"all": True, "run_ids": ["x"]}, {"run_ids": []}])
def test_what_to_retry_must_be_said(api: Api, body: dict[str, Any]) -> None:
    assert error_of(api.admin.post("/v1/dead/retry", json=body))[0] == 422


def test_two_retries_at_the_same_time_make_one_run(api: Api, redis_server: RedisServer, effort: int) -> None:
    """Again and again, 4 at once, by either route."""
    for _ in range(4 * effort):
        run_id = dead_run(api, redis_server, api.admin)
        clients = [api.admin for _ in range(4)]

        def retry(n: int, clients: list[httpx2.Client] = clients, run_id: str = run_id) -> httpx2.Response:
            if n % 2:
                return clients[n].post(f"/v1/dead/{run_id}/retry")
            return clients[n].post("/v1/dead/retry", json={"run_ids": [run_id]})

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(retry, range(4)))
        made = set[str]()
        for answer in (answer.json() for answer in answers if answer.is_success):
            made |= (
                {item["retried_as"] for item in answer["items"]} if "items" in answer else {answer["run_id"]}
            )
        assert len(made) == 1, [answer.text for answer in answers]
        for client in clients:
            client.close()


def test_many_are_dropped_at_once(api: Api, redis_server: RedisServer) -> None:
    """A user drops their own and nobody else's, whatever ids they send."""
    ada, bob = api.user("ada"), api.user("bob")
    mine = [dead_run(api, redis_server, ada) for _ in range(3)]
    theirs = dead_run(api, redis_server, bob)
    chosen = {"id": [mine[0], listed(ada)[0]["id"], theirs, "nothing"]}
    assert ada.delete("/v1/dead", params=chosen).json() == {"dropped": 2}
    assert ada.delete("/v1/dead", params={"all": "1"}).json() == {"dropped": 1}
    assert [letter["run_id"] for letter in listed(api.admin)] == [theirs]
    dead_letter(redis_server, {"reason": "malformed"})
    assert api.admin.delete("/v1/dead", params={"all": "1"}).json() == {"dropped": 2}
    assert error_of(ada.delete("/v1/dead"))[0] == 422
