"""Cancelling over HTTP in every state, also when the worker or Redis is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from support.api_server import Api, serving, settings_for
from support.servers import RedisServer

from app.core.errors import StorageError
from app.core.events import Event, EventType
from app.core.models import Fence, RunStatus
from app.db.run_store import Batch, Outcome, RunStore
from app.redis.clients import RedisClients
from app.redis.publisher import Publisher, Tail
from tailrun.process.lines import Level, Stream

PROMPT = {"prompt": "x", "planner": "smoke"}
WORKER = "w1"


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, database_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path, redis_server.url, database_url)) as api:
        yield api


def line(run_id: str, seq: int) -> Event:
    return Event(seq, EventType.LOG, 1_000_000, run_id, 1, Level.INFO, Stream.STDOUT, "s1", f"line {seq}")


def running(api: Api) -> str:
    """Make a run that worker w1 has claimed and written one line of."""
    run_id = api.admin.post("/v1/runs", json=PROMPT).json()["run_id"]

    async def claim(store: RunStore) -> None:
        [run] = await store.claim([run_id], WORKER, 5)
        await store.commit(Fence(run_id, run.attempt, WORKER), 2, Batch(events=[line(run_id, 3)]))

    api.store(claim)
    return run_id


def lease(redis_server: RedisServer, left_ms: int) -> None:
    with redis_server.client() as client:
        seconds, micros = client.time()  # pyright: ignore[reportGeneralTypeIssues]
        client.zadd("jobs:workers", {WORKER: seconds * 1000 + micros // 1000 + left_ms})


def events(api: Api, run_id: str) -> list[dict[str, object]]:
    return api.admin.get(f"/v1/runs/{run_id}/logs").json()["events"]


@pytest.mark.parametrize("start", [True, False])
def test_a_run_that_waits_is_cancelled_at_once(api: Api, start: bool) -> None:
    """Created and queued runs end in the answer itself, with `end` as the last event."""
    run_id = api.admin.post("/v1/runs", json={**PROMPT, "start": start}).json()["run_id"]
    run = api.admin.post(f"/v1/runs/{run_id}/cancel").json()
    assert (run["status"], run["error"]["code"]) == ("cancelled", "cancelled")
    assert run["cancel_requested_at"] == run["ended_at"]
    assert events(api, run_id)[-1] | {"ts": ""} == {
        "seq": run["last_seq"],
        "type": "end",
        "ts": "",
        "run_id": run_id,
        "attempt": 1,
        "status": "cancelled",
        "exit_code": None,
        "error": run["error"],
    }


def test_a_running_run_is_asked_to_stop(api: Api, redis_server: RedisServer) -> None:
    """The request stands in the row and goes out as a signal; the owner ends the run."""
    run_id = running(api)
    lease(redis_server, 60_000)
    with redis_server.client() as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("agent:control")
        pubsub.get_message(timeout=60)
        run = api.admin.post(f"/v1/runs/{run_id}/cancel").json()
        message = pubsub.get_message(timeout=60)
    assert message
    assert orjson.loads(str(message["data"])) == {"run_id": run_id, "signal": "STOP"}
    assert run["status"] == "running"
    assert run["cancel_requested_at"] is not None
    again = api.admin.post(f"/v1/runs/{run_id}/cancel").json()
    assert again["cancel_requested_at"] == run["cancel_requested_at"]


def test_a_finished_run_is_left_as_it_is(api: Api) -> None:
    """Cancelling it is a 200 that changes nothing."""
    run_id = running(api)

    async def finish(store: RunStore) -> None:
        end = Event(4, EventType.END, 6, run_id, 1, data={"status": "succeeded"})
        batch = Batch(events=[end], outcome=Outcome(RunStatus.SUCCEEDED, exit_code=0))
        await store.commit(Fence(run_id, 1, WORKER), 3, batch)

    api.store(finish)
    before = api.admin.get(f"/v1/runs/{run_id}").json()
    response = api.admin.post(f"/v1/runs/{run_id}/cancel")
    assert (response.status_code, response.json()) == (200, before)


@pytest.mark.parametrize("left_ms", [None, -1])
def test_a_run_of_a_dead_worker_is_ended_with_its_last_lines(
    api: Api, redis_server: RedisServer, left_ms: int | None
) -> None:
    """Lines that only the tail has are saved; the dead worker can neither write nor publish any more."""
    run_id = running(api)
    _dead_for_certain(redis_server)
    if left_ms is not None:
        lease(redis_server, left_ms)

    async def publish(clients: RedisClients) -> None:
        publisher = Publisher(clients)
        await publisher.raise_fence(run_id, 1)
        lines = [line(run_id, seq).encode() for seq in (3, 4, 5)]
        await publisher.append(run_id, 1, 3, lines, keep_from=0)

    api.redis(publish)
    run = api.admin.post(f"/v1/runs/{run_id}/cancel").json()
    assert (run["status"], run["attempt"], run["last_seq"]) == ("cancelled", 2, 6)
    got = events(api, run_id)
    assert [(event["seq"], event["type"]) for event in got][2:] == [
        (3, "log"),
        (4, "log"),
        (5, "log"),
        (6, "end"),
    ]

    async def publish_late(clients: RedisClients) -> object:
        return await Publisher(clients).append(run_id, 1, 6, [line(run_id, 6).encode()], keep_from=0)

    refused = api.redis(publish_late)
    assert refused is not None


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Publisher, "raise_fence"),
        (Tail, "read"),
        (RunStore, "commit"),
        (RunStore, "commit after the tail's lines"),
    ],
)
def test_an_end_that_broke_off_is_finished_by_the_next(
    api: Api, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """After each step of the take-over another one can do it all again; a hole in the tail is told."""
    run_id = running(api)
    _dead_for_certain(redis_server)

    async def publish(clients: RedisClients) -> None:
        lines = [line(run_id, seq).encode() for seq in (6, 7)]
        await Publisher(clients).append(run_id, 1, 6, lines, keep_from=0, may_raise=True)

    api.redis(publish)
    method, _, later = name.partition(" ")
    whole, calls = getattr(owner, method), 0

    async def breaks_off(*args: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 1 + bool(later):
            raise StorageError("gone")
        return await whole(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, breaks_off)
        run = api.admin.post(f"/v1/runs/{run_id}/cancel").json()
        assert run["status"] == "running"
    between = api.admin.get(f"/v1/runs/{run_id}").json()
    assert (between["status"], between["attempt"]) == ("running", 2)
    run = api.admin.post(f"/v1/runs/{run_id}/cancel").json()
    assert (run["status"], run["attempt"], run["last_seq"]) == ("cancelled", 3, 8)
    assert [(event["seq"], event["type"]) for event in events(api, run_id)][-4:] == [
        (5, "gap"),
        (6, "log"),
        (7, "log"),
        (8, "end"),
    ]


def _dead_for_certain(redis_server: RedisServer) -> None:
    """The API ticks itself. Without an earlier tick nobody is dead for certain: Redis was away."""
    with redis_server.client() as client:
        seconds, _ = client.time()  # pyright: ignore[reportGeneralTypeIssues]
        client.set("jobs:tick", f"{seconds * 1000} 1")


def test_watchers_see_a_cancelled_run_end(api: Api) -> None:
    """Whoever follows a queued run gets its end from the cancel, at once."""
    run_id = api.admin.post("/v1/runs", json=PROMPT).json()["run_id"]
    client = api.admin
    with client.stream("GET", f"/v1/runs/{run_id}/stream?format=ndjson") as stream:
        lines = stream.iter_lines()
        assert [orjson.loads(next(lines))["type"] for _ in range(2)] == ["status", "status"]
        api.admin.post(f"/v1/runs/{run_id}/cancel")
        assert orjson.loads(next(lines))["type"] == "end"


def test_cancel_without_redis_stands_in_the_row(tmp_path: Path, sqlite_url: str) -> None:
    """The answer is a success, and the owner reads the request with its next write."""
    own = RedisServer(tmp_path / "redis").start()
    try:
        with serving(settings_for(tmp_path, own.url, sqlite_url)) as api:
            run_id = running(api)
            own.kill()
            response = api.admin.post(f"/v1/runs/{run_id}/cancel")
            assert (response.status_code, response.json()["status"]) == (200, "running")
            owner = api.store(lambda store: store.owner(run_id))
            assert owner is not None
            assert owner.cancel_requested_at is not None
    finally:
        own.stop()
