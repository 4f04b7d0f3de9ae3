"""The queue and its dead letters over HTTP, health and figures."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import orjson
import pytest
from support.api_server import Api, error_of, serving, settings_for
from support.servers import RedisServer

from app.core.events import Event, EventType
from app.core.models import Fence, RunStatus
from app.db.run_store import Batch, Outcome, RunStore

PROMPT = {"prompt": "x", "planner": "smoke"}


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, sqlite_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path, redis_server.url, sqlite_url)) as api:
        yield api


def fail(api: Api, run_id: str) -> None:
    async def work(store: RunStore) -> None:
        [run] = await store.claim([run_id], "w1", 5)
        end = Event(run.last_seq + 1, EventType.END, 6, run_id, 1, data={"status": "failed"})
        batch = Batch(events=[end], outcome=Outcome(RunStatus.FAILED, exit_code=1))
        await store.commit(Fence(run_id, 1, "w1"), run.last_seq, batch)

    api.store(work)


def dead_letter(
    redis: RedisServer, run_id: str, user_id: str | None = None, reason: str = "retries exhausted"
) -> None:
    entry = {"run_id": run_id} | ({"user_id": user_id} if user_id else {})
    letter = {
        "run_id": run_id,
        "entry": entry,
        "reason": "retries exhausted",
        "error": None,
        "raw": "",
        "at": "t",
    }
    with redis.client() as client:
        client.lpush("jobs:dead", orjson.dumps(letter))


def dead(client: httpx2.Client, **params: str) -> list[str]:
    return [letter["run_id"] for letter in client.get("/v1/dead", params=params).json()["items"]]


def test_the_queue_is_shown_as_redis_has_it(api: Api, redis_server: RedisServer) -> None:
    """Depth, what is held, delayed and dead, the oldest age, and each worker's lease."""
    api.admin.post("/v1/runs", json=PROMPT)
    api.admin.post("/v1/runs", json=PROMPT)
    dead_letter(redis_server, "x")
    with redis_server.client() as client:
        client.zadd("jobs:workers", {"w1": (time.time() + 60) * 1000, "w2": (time.time() - 60) * 1000})
        client.lpush("jobs:processing:w1", "a", "b", "c")
        client.zadd("jobs:delayed", {"d": (time.time() + 3600) * 1000})
    shown = api.admin.get("/v1/queue").json()
    assert {key: shown[key] for key in ("depth", "in_flight", "delayed", "dead")} == {
        "depth": 2,
        "in_flight": 3,
        "delayed": 1,
        "dead": 1,
    }
    assert 0 <= shown["oldest_age_s"] < 30
    [alive, lost] = shown["workers"]
    assert (alive["worker_id"], alive["in_flight"], alive["lease_left_s"] > 50) == ("w1", 3, True)
    assert (lost["worker_id"], lost["in_flight"], lost["lease_left_s"] < -50) == ("w2", 0, True)


def test_an_empty_queue_has_no_oldest_age(api: Api) -> None:
    """Null, not zero. It says that no worker is alive, and what to do."""
    queue = api.admin.get("/v1/queue").json()
    assert queue.pop("idle").startswith("no worker is alive: start one with `tailrun worker`")
    assert queue == {
        "depth": 0,
        "in_flight": 0,
        "load": 0,
        "delayed": 0,
        "dead": 0,
        "oldest_age_s": None,
        "ended_per_min": 0,
        "workers": [],
    }


def test_users_see_their_own_dead_letters(api: Api, redis_server: RedisServer) -> None:
    """By the run's row, not by what an entry claims; an admin sees everything, garbage too."""
    ada, bob = api.user("ada"), api.user("bob")
    mine = [ada.post("/v1/runs", json=PROMPT).json()["run_id"] for _ in range(3)]
    theirs = bob.post("/v1/runs", json=PROMPT).json()["run_id"]
    dead_letter(redis_server, mine[0], "ada")
    dead_letter(redis_server, theirs, "ada")  # a forged entry
    dead_letter(redis_server, mine[1])
    dead_letter(redis_server, "no-run")
    with redis_server.client() as client:
        client.lpush("jobs:dead", "garbage")
    dead_letter(redis_server, mine[2], "ada")
    assert dead(ada) == [mine[2], mine[1], mine[0]]
    assert dead(bob) == []
    page = api.admin.get("/v1/dead", params={"limit": 4}).json()
    assert [letter.get("run_id") for letter in page["items"]] == [mine[2], None, "no-run", mine[1]]
    assert page["items"][1]["raw"] == "garbage"
    assert dead(api.admin, cursor=page["next"]) == [theirs, mine[0]]
    first = ada.get("/v1/dead", params={"limit": 1}).json()
    assert dead(ada, cursor=first["next"]) == [mine[1], mine[0]]


def test_a_dead_run_is_retried_as_a_new_one(api: Api, redis_server: RedisServer) -> None:
    """Its letter goes, a new run comes; without a letter it is a 404."""
    ada = api.user("ada")
    run_id = ada.post("/v1/runs", json=PROMPT).json()["run_id"]
    fail(api, run_id)
    assert error_of(ada.post(f"/v1/dead/{run_id}/retry")) == (404, "not_found")
    dead_letter(redis_server, run_id, "ada")
    response = ada.post(f"/v1/dead/{run_id}/retry")
    assert (response.status_code, response.json()["retry_of"]) == (201, run_id)
    assert dead(ada) == []


def test_a_dead_letter_is_dropped(api: Api, redis_server: RedisServer) -> None:
    """By its user, or by an admin also where the run never existed."""
    ada, bob = api.user("ada"), api.user("bob")
    run_id = ada.post("/v1/runs", json=PROMPT).json()["run_id"]
    dead_letter(redis_server, run_id, "ada")
    dead_letter(redis_server, "no-run")
    assert error_of(bob.delete(f"/v1/dead/{run_id}"))[0] == 404
    assert error_of(ada.delete("/v1/dead/no-run"))[0] == 404
    assert ada.delete(f"/v1/dead/{run_id}").status_code == 204
    assert error_of(ada.delete(f"/v1/dead/{run_id}"))[0] == 404
    assert api.admin.delete("/v1/dead/no-run").status_code == 204
    assert dead(api.admin) == []


def test_health_is_open_to_everybody(api: Api) -> None:
    """No token is needed, for probes have none."""
    client = api.client()
    assert client.get("/healthz").json() == {"status": "ok"}
    body = client.get("/readyz").json()
    assert (body["ready"], body["checks"]) == (True, {"database": "ok", "redis": "ok", "files": "ok"})
    assert client.get("/openapi.json").status_code == 200
    assert client.get("/docs").status_code == 200


def test_the_figures_are_real(api: Api, redis_server: RedisServer) -> None:
    """Runs by state, the queue's depth, workers and answers are counted at the time of asking."""
    ids = [api.admin.post("/v1/runs", json=PROMPT).json()["run_id"] for _ in range(3)]
    fail(api, ids[0])
    with redis_server.client() as client:
        client.zadd("jobs:workers", {"w1": (time.time() + 60) * 1000, "w2": 1})
    text = api.client().get("/metrics").text

    def figure(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, name
        return float(found.group(1))

    assert figure('tailrun_runs{state="queued"}') == 2
    assert figure('tailrun_runs{state="failed"}') == 1
    assert figure('tailrun_runs{state="running"}') == 0
    assert figure('tailrun_queue_depth{place="pending"}') == 3
    assert figure("tailrun_workers") == 1
    assert 0 < figure("tailrun_queue_oldest_age_seconds") < 30
    count = 'tailrun_http_request_seconds_count{method="POST",route="/v1/runs",status="201"}'
    assert figure(count) >= 3
