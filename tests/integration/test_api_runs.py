"""Runs over HTTP: made, held, started, listed, retried; on both databases, over real Redis."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
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

PROMPT = {"prompt": "Test Phase 2B", "planner": "smoke"}


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, database_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path, redis_server.url, database_url)) as api:
        yield api


def pending(redis: RedisServer) -> list[dict[str, object]]:
    with redis.client() as client:
        return [orjson.loads(str(raw)) for raw in client.lrange("jobs:pending", 0, -1)]  # pyright: ignore[reportGeneralTypeIssues]


def line(run_id: str, seq: int, content: str, level: Level = Level.INFO) -> Event:
    return Event(seq, EventType.LOG, 1_000_000 + seq, run_id, 1, level, Stream.STDOUT, "s1", content)


async def work(store: RunStore, run_id: str, lines: list[str], status: RunStatus | None) -> None:
    """Be a worker: claim the run, write lines, and end it if a status is given."""
    [run] = await store.claim([run_id], "w1", 5)
    after = run.last_seq
    events = [line(run_id, after + n, text) for n, text in enumerate(lines, 1)]
    outcome = None
    if status is not None:
        data = {"status": status, "exit_code": 0, "error": None}
        events.append(Event(after + len(lines) + 1, EventType.END, 2_000_000, run_id, 1, data=data))
        outcome = Outcome(status, exit_code=0)
    if events:
        await store.commit(Fence(run_id, run.attempt, "w1"), after, Batch(events=events, outcome=outcome))


def test_a_run_is_queued_at_once(api: Api, redis_server: RedisServer) -> None:
    """POST answers 201 with the run and its address; the entry of the contract stands in Redis."""
    response = api.admin.post("/v1/runs", json=PROMPT)
    run = response.json()
    assert response.status_code == 201
    assert response.headers["Location"] == f"/v1/runs/{run['run_id']}" == run["links"]["self"]
    assert run["status"] == "queued"
    assert run["kind"] == "prompt"
    assert run["spec"] == PROMPT
    assert run["user_id"] == "admin"
    assert run["queued_at"] == run["created_at"]
    [entry] = pending(redis_server)
    assert entry == {
        "run_id": run["run_id"],
        "user_id": "admin",
        "kind": "prompt",
        "project": None,
        "type": None,
        "attempt": 0,
        "enqueued_at": run["queued_at"],
        "priority": "normal",
    }
    assert api.admin.get(run["links"]["self"]).json() == run


def test_a_held_run_waits_for_its_start(api: Api, redis_server: RedisServer) -> None:
    """`"start": false` queues nothing; starting twice queues once and answers 200 both times."""
    run = api.admin.post("/v1/runs", json={**PROMPT, "start": False}).json()
    assert run["status"] == "created"
    assert pending(redis_server) == []
    for _ in range(3):
        response = api.admin.post(f"/v1/runs/{run['run_id']}/start")
        assert (response.status_code, response.json()["status"]) == (200, "queued")
    assert len(pending(redis_server)) == 1


@pytest.mark.parametrize("route", ["/agent/execute", "/execute"])
def test_the_lines_of_the_readme_work_without_a_content_type(
    api: Api, redis_server: RedisServer, route: str
) -> None:
    """`curl -d` sends a form type; create holds, start queues, status shows, cancel ends."""
    client = api.admin
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    created = client.post(route, content=b'{"action": "create", "prompt": "Test Phase 2B"}', headers=form)
    run_id = created.json()["run_id"]
    assert (created.status_code, created.json()["status"]) == (201, "created")
    assert created.json()["planner"] == "smoke"
    assert created.json()["warning"].startswith("No model carries out a prompt here")
    assert pending(redis_server) == []
    for action, status in (
        ("start", "queued"),
        ("start", "queued"),
        ("status", "queued"),
        ("cancel", "cancelled"),
    ):
        body = orjson.dumps({"action": action, "run_id": run_id})
        response = client.post(route, content=body, headers=form)
        assert (response.status_code, response.json()["status"]) == (200, status)
        assert response.json()["warning"] == created.json()["warning"]
    planned = {"action": "create", "prompt": "```yaml\n- {tool: file_list, args: {}}\n```"}
    made = client.post(route, json=planned).json()
    assert (made["planner"], made.get("warning"), made["spec"]["prompt"]) == (None, None, planned["prompt"])
    assert len(pending(redis_server)) == 1
    started_again = client.post("/agent/execute", json={"action": "start", "run_id": run_id})
    assert error_of(started_again) == (409, "conflict")


def test_an_idempotency_key_makes_one_run(api: Api, redis_server: RedisServer) -> None:
    """The same key and body answer 200 with the first run; another body is a 409; users don't share keys."""
    key = {"Idempotency-Key": "k1"}
    first = api.admin.post("/v1/runs", json=PROMPT, headers=key)
    again = api.admin.post("/v1/runs", json=PROMPT, headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert (
        error_of(api.admin.post("/v1/runs", json={"prompt": "other", "planner": "smoke"}, headers=key))[0]
        == 409
    )
    assert error_of(api.admin.post("/v1/runs", json={**PROMPT, "start": False}, headers=key))[0] == 409
    assert api.user("ada").post("/v1/runs", json=PROMPT, headers=key).status_code == 201
    assert len(pending(redis_server)) == 2


def test_every_kind_of_run_is_taken(api: Api) -> None:
    """Steps and argv stand in the spec as they were sent; the environment is never shown."""
    steps = [{"tool": "shell", "args": {"command": "ls"}}]
    run = api.admin.post("/v1/runs", json={"steps": steps, "labels": {"a": "b"}, "timeout_s": 60}).json()
    assert (run["kind"], run["spec"], run["labels"], run["timeout_s"]) == (
        "steps",
        {"steps": steps},
        {"a": "b"},
        60,
    )
    run = api.admin.post("/v1/runs", json={"argv": ["ls", "-l"], "env": {"KEY": "secret"}}).json()
    assert (run["kind"], run["spec"]) == ("argv", {"argv": ["ls", "-l"]})
    stored = api.store(lambda store: store.get(run["run_id"]))
    assert stored is not None
    assert stored.spec == {"argv": ["ls", "-l"], "env": {"KEY": "secret"}}
    assert "secret" not in api.admin.get(f"/v1/runs/{run['run_id']}").text


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({}, "invalid", "exactly one of prompt, steps, type and argv, not none"),
        ({**PROMPT, "steps": []}, "invalid", "not prompt and steps"),
        ({"steps": []}, "invalid_steps", "1 to 100"),
        ({"steps": [{"tool": "browse", "args": {}}]}, "invalid_steps", "unknown tool 'browse'"),
        ({"steps": [{"tool": "shell", "args": {"cmd": "x"}}]}, "invalid_steps", "step 1 (shell)"),
        ({"steps": [{"tool": "file_read", "args": {"path": "../x"}}]}, "invalid_steps", "'..'"),
        ({"type": "seed-bd"}, "unknown_type", "Did you mean 'seed-db'?"),
        ({**PROMPT, "params": {}}, "invalid", "params goes with type only"),
        ({"prompt": "Test Phase 2B"}, "no_model", 'ask for "planner": "smoke"'),
        ({"prompt": "```python\nsteps: []\n```"}, "no_model", "send steps, an argv or a typed task"),
        ({**PROMPT, "planner": "gpt"}, "invalid", "planner must be one of smoke, agent, not 'gpt'"),
        ({"argv": ["true"], "planner": "smoke"}, "invalid", "planner goes with prompt only"),
        ({**PROMPT, "timeout_s": 3601}, "invalid", "at most 3600"),
        ({**PROMPT, "nonsense": 1}, "invalid", "nonsense"),
    ],
)
def test_a_run_that_cannot_be_is_a_422_that_says_why(
    api: Api, body: dict[str, object], code: str, says: str
) -> None:
    """Nothing is made of it."""
    response = api.admin.post("/v1/runs", json=body)
    assert error_of(response) == (422, code)
    assert says in response.json()["error"]["message"]
    assert api.admin.get("/v1/runs").json() == {"items": [], "next": None}


def test_an_idempotency_key_has_limits(api: Api) -> None:
    """Too long a key is refused, not cut."""
    assert error_of(api.admin.post("/v1/runs", json=PROMPT, headers={"Idempotency-Key": "k" * 256}))[0] == 422


def test_a_workspace_comes_from_an_own_run_only(api: Api) -> None:
    """Not from a foreign, an unknown or a malformed one, and not for an admin either."""
    ada, bob = api.user("ada"), api.user("bob")
    source = ada.post("/v1/runs", json=PROMPT).json()["run_id"]
    made = ada.post("/v1/runs", json={**PROMPT, "workspace_from": source})
    assert (made.status_code, made.json()["workspace_from"]) == (201, source)
    for client, run_id in ((bob, source), (api.admin, source), (ada, str(uuid.uuid4())), (ada, "../x")):
        assert error_of(client.post("/v1/runs", json={**PROMPT, "workspace_from": run_id})) == (
            404,
            "not_found",
        )


def test_runs_are_listed_newest_first_in_pages(api: Api) -> None:
    """The cursor goes on where the page ended; states filter; others' runs need an admin and all=1."""
    ada = api.user("ada")
    ids = [ada.post("/v1/runs", json={**PROMPT, "start": n % 2 == 0}).json()["run_id"] for n in range(5)]
    api.admin.post("/v1/runs", json=PROMPT)
    seen: list[str] = []
    page = ada.get("/v1/runs", params={"limit": 2}).json()
    while True:
        seen += [run["run_id"] for run in page["items"]]
        if page["next"] is None:
            break
        page = ada.get("/v1/runs", params={"limit": 2, "cursor": page["next"]}).json()
    assert seen == ids[::-1]
    held = ada.get("/v1/runs", params={"status": "created"}).json()["items"]
    assert [run["run_id"] for run in held] == [ids[3], ids[1]]
    assert error_of(ada.get("/v1/runs?all=1")) == (403, "forbidden")
    assert len(api.admin.get("/v1/runs?all=1").json()["items"]) == 6
    assert len(api.admin.get("/v1/runs").json()["items"]) == 1


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "status=done", "cursor=x", "cursor=1.%00"]
)
def test_a_list_with_bad_parameters_is_a_422(api: Api, query: str) -> None:
    """The parameter is named."""
    response = api.admin.get(f"/v1/runs?{query}")
    assert error_of(response)[0] == 422
    assert query.partition("=")[0] in response.json()["error"]["message"]


def test_the_log_is_read_in_pages(api: Api) -> None:
    """Pages follow `next_after`, which is null once the run has ended and nothing is left."""
    client = api.admin
    run_id = client.post("/v1/runs", json=PROMPT).json()["run_id"]
    api.store(lambda store: work(store, run_id, ["one", "Two", "three"], RunStatus.SUCCEEDED))
    seen: list[int] = []
    after: int | None = 0
    while after is not None:
        page = client.get(f"/v1/runs/{run_id}/logs", params={"after": after, "limit": 2}).json()
        seen += [event["seq"] for event in page["events"]]
        after = page["next_after"]
    assert seen == [1, 2, 3, 4, 5, 6]
    alias = client.get(f"/agent/logs/{run_id}", params={"q": "two"}).json()
    assert [event.get("content") for event in alias["events"]] == ["Two", None]
    text = client.get(f"/v1/runs/{run_id}/logs", params={"format": "text"})
    assert (text.text, text.headers["Content-Type"]) == ("one\nTwo\nthree\n", "text/plain; charset=utf-8")
    assert "X-Next-After" not in text.headers


def test_a_poller_of_a_live_run_goes_on_where_it_was(api: Api) -> None:
    """`next_after` stays a number while more may come, also past lines that a filter hid."""
    client = api.admin
    run_id = client.post("/v1/runs", json=PROMPT).json()["run_id"]
    api.store(lambda store: work(store, run_id, ["one", "two"], None))
    page = client.get(f"/v1/runs/{run_id}/logs").json()
    assert (len(page["events"]), page["next_after"]) == (4, 4)
    assert client.get(f"/v1/runs/{run_id}/logs?after=4").json() == {"events": [], "next_after": 4}
    assert client.get(f"/v1/runs/{run_id}/logs?level=error").json() == {"events": [], "next_after": 4}


def test_a_run_shows_its_last_events(api: Api) -> None:
    """`?logs=N` takes the last N; operations show bare lines, 100 unless told."""
    client = api.admin
    run_id = client.post("/v1/runs", json=PROMPT).json()["run_id"]
    api.store(lambda store: work(store, run_id, [f"line {n}" for n in range(150)], RunStatus.SUCCEEDED))
    logs = client.get(f"/v1/runs/{run_id}?logs=3").json()["logs"]
    assert [event.get("content", event["type"]) for event in logs] == ["line 148", "line 149", "end"]
    assert client.get(f"/v1/runs/{run_id}?logs=0").json()["logs"] == []
    assert len(client.get(f"/v1/runs/{run_id}?logs=1000").json()["logs"]) == 153
    assert "logs" not in client.get(f"/v1/runs/{run_id}").json()
    assert error_of(client.get(f"/v1/runs/{run_id}?logs=1001"))[0] == 422
    operation = client.get(f"/api/v1/operations/{run_id}").json()
    assert operation["operation_id"] == run_id
    assert operation["logs"] == [f"line {n}" for n in range(50, 150)]
    assert client.get(f"/api/v1/operations/{run_id}?logs=1").json()["logs"] == ["line 149"]


def test_a_run_shows_as_a_task(api: Api) -> None:
    """The alias answers the same body with `task_id`."""
    run_id = api.admin.post("/v1/runs", json=PROMPT).json()["run_id"]
    task = api.admin.get(f"/tasks/{run_id}").json()
    assert (task["task_id"], task["run_id"], task["status"]) == (run_id, run_id, "queued")


def test_a_retry_makes_a_new_run_over_the_old_ones_files(api: Api, redis_server: RedisServer) -> None:
    """Only a finished run is retried; the old one stays as it is."""
    client = api.user("ada")
    body = {"argv": ["ls"], "env": {"A": "b"}, "labels": {"x": "y"}, "max_attempts": 2}
    run_id = client.post("/v1/runs", json=body).json()["run_id"]
    assert error_of(client.post(f"/v1/runs/{run_id}/retry")) == (409, "conflict")
    api.store(lambda store: work(store, run_id, [], RunStatus.FAILED))
    response = client.post(f"/v1/runs/{run_id}/retry")
    made = response.json()
    assert (response.status_code, response.headers["Location"]) == (201, made["links"]["self"])
    assert made["run_id"] != run_id
    assert (made["retry_of"], made["workspace_from"], made["status"]) == (run_id, run_id, "queued")
    assert (made["labels"], made["max_attempts"], made["user_id"]) == ({"x": "y"}, 2, "ada")
    stored = api.store(lambda store: store.get(made["run_id"]))
    assert stored is not None
    assert stored.spec == {"argv": ["ls"], "env": {"A": "b"}}
    assert client.get(f"/v1/runs/{run_id}").json()["status"] == "failed"
    assert [entry["run_id"] for entry in pending(redis_server)] == [made["run_id"], run_id]


def test_steps_are_listed(api: Api) -> None:
    """A run that never ran has none."""
    run_id = api.admin.post("/v1/runs", json=PROMPT).json()["run_id"]
    assert api.admin.get(f"/v1/runs/{run_id}/steps").json() == {"items": [], "next": None}


def together(clients: Sequence[httpx2.Client], path: str, **body: Any) -> list[httpx2.Response]:
    """POST from all clients at once."""
    with ThreadPoolExecutor(len(clients)) as pool:
        return [task.result() for task in [pool.submit(client.post, path, **body) for client in clients]]


def test_simultaneous_starts_make_one_entry(api: Api, redis_server: RedisServer, effort: int) -> None:
    """However many ask at once, the run is queued once, and each of them is told 200."""
    clients = [api.admin for _ in range(8)]
    for round_no in range(4 * effort):
        run_id = clients[0].post("/v1/runs", json={**PROMPT, "start": False}).json()["run_id"]
        answers = together(clients, f"/v1/runs/{run_id}/start")
        assert [answer.status_code for answer in answers] == [200] * len(clients)
        assert len(pending(redis_server)) == round_no + 1


def test_simultaneous_repeats_of_a_key_make_one_run(api: Api, redis_server: RedisServer, effort: int) -> None:
    """One 201, else 200, and all of them the same run."""
    clients = [api.admin for _ in range(8)]
    for round_no in range(4 * effort):
        headers = {"Idempotency-Key": f"k{round_no}"}
        answers = together(clients, "/v1/runs", json=PROMPT, headers=headers)
        assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
        assert len({answer.json()["run_id"] for answer in answers}) == 1
        assert len(pending(redis_server)) == round_no + 1
