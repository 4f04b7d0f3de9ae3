"""Tasks, operations, projects and callers without a token: what the API takes, keeps and shows."""

from __future__ import annotations

import base64
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from support.api_server import TOKEN, Api, changed, error_of, serving, settings_for
from support.servers import RedisServer

from app.config import Settings
from app.main import serve

KEY = base64.urlsafe_b64encode(b"k" * 32).decode()
OTHER_KEY = base64.urlsafe_b64encode(b"o" * 32).decode()
SEED = {"project": "default", "type": "seed-db", "params": {"reset": True}}

TYPES = """
types:
  operation:
    program: [echo]
    params:
      app_signature: {required: true}
      permission_id: {type: integer}
  whole:
    program: [echo]
    commands:
      now:
        params: {app_signature: {}, operation_request_json: {required: true}}
"""


@pytest.fixture
def settings(tmp_path: Path, redis_server: RedisServer, migrated_url: str) -> Settings:
    keys = SecretStr(KEY)
    return settings_for(tmp_path / "data", redis_server.url, migrated_url, projects_key=keys)


@pytest.fixture
def api(settings: Settings) -> Iterator[Api]:
    with serving(settings, migrated=False) as api:
        yield api


def test_a_task_is_a_run_and_is_stored_as_sent(api: Api) -> None:
    """`POST /tasks` and `POST /v1/runs` make the same; nothing is filled in."""
    client = api.user("ada")
    task = client.post("/tasks", json=SEED)
    assert task.status_code == 201
    assert task.json()["status"] == "queued"
    run = client.get(f"/v1/runs/{task.json()['task_id']}").json()
    assert (run["kind"], run["type"], run["project"], run["spec"]) == ("task", "seed-db", "default", SEED)
    made = client.post("/v1/runs", json={"type": "agent", "command": "run", "params": {"input": "x"}}).json()
    assert made["spec"] == {"type": "agent", "command": "run", "params": {"input": "x"}}
    assert (made["kind"], made["project"]) == ("task", "default")
    retried = api.store(lambda store: store.get(made["run_id"]))
    assert retried is not None
    assert retried.spec == made["spec"]


def test_a_task_has_a_limit_and_a_webhook_of_its_own(settings: Settings) -> None:
    """Both as of a run; a webhook is refused by a server that could not sign it."""
    url = "https://example.com/"
    with serving(settings, migrated=False) as api:
        refused = api.admin.post("/tasks", json={**SEED, "webhook_url": url})
        assert refused.status_code == 422
        assert "WEBHOOK_SECRET" in refused.json()["error"]["message"]
    with serving(changed(settings, webhook_secret=SecretStr("w" * 32)), migrated=False) as api:
        made = api.admin.post("/tasks", json={**SEED, "webhook_url": url, "timeout_s": 7}).json()
        assert made["webhook_url"] == url
        assert made["timeout_s"] == 7


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({**SEED, "type": "seed-bd"}, "unknown_type", "Did you mean 'seed-db'?"),
        ({**SEED, "type": "agent"}, "unknown_command", "command is required"),
        ({**SEED, "params": {"rest": True}}, "invalid_params", "Did you mean 'reset'?"),
        ({**SEED, "params": {"reset": "yes"}}, "invalid_params", "must be true or false"),
        ({**SEED, "project": "defualt"}, "unknown_project", "no project 'defualt'"),
    ],
)
def test_a_task_that_cannot_be_is_refused_by_name(
    api: Api, body: dict[str, Any], code: str, says: str
) -> None:
    response = api.admin.post("/tasks", json=body)
    assert error_of(response) == (422, code)
    assert says in response.json()["error"]["message"]


def test_a_task_takes_no_environment(api: Api) -> None:
    """It could change the meaning of the program that gets the project's secrets."""
    response = api.admin.post("/v1/runs", json={"type": "seed-db", "env": {"PYTHONSTARTUP": "x.py"}})
    assert error_of(response) == (422, "invalid")


def test_types_are_listed_with_their_help(api: Api) -> None:
    items = {item["type"]: item for item in api.user("ada").get("/v1/task-types").json()["items"]}
    assert list(items) == ["seed-db", "task-context", "agent", "operation"]
    assert items["seed-db"]["params"]["reset"]["type"] == "boolean"
    run = items["agent"]["commands"]["run"]
    assert run["params"]["input"]["required"]
    assert (run["params"]["parallel_workers"]["min"], items["agent"]["params"]) == (1, {})


def test_operations_name_their_type(api: Api) -> None:
    """Without OPERATION_TYPE `app_signature` is the type, and the request its parameters."""
    body = {"app_signature": "agent/run", "operation_request_json": '{"input": "x"}'}
    made = api.admin.post("/api/v1/operations", json=body)
    assert made.status_code == 201, made.text
    assert made.json()["logs"] == []
    run = api.admin.get(f"/v1/runs/{made.json()['operation_id']}").json()
    assert run["spec"] == {"type": "agent", "command": "run", "params": {"input": "x"}}
    wrong = {**body, "app_signature": "agent/walk"}
    assert error_of(api.admin.post("/api/v1/operations", json=wrong)) == (422, "unknown_command")
    broken = api.admin.post("/api/v1/operations", json={**body, "operation_request_json": "{"})
    assert error_of(broken) == (422, "invalid")
    assert "operation_request_json is not valid JSON" in broken.json()["error"]["message"]


def test_the_operation_of_the_source_needs_no_setting(api: Api) -> None:
    """`app_signature` names no type of this server, and the shipped type takes both fields."""
    body = {"app_signature": "demo", "operation_request_json": '{"permission_id": 4096}'}
    made = api.user("ada").post("/api/v1/operations", json=body)
    assert made.status_code == 201, made.text
    shown = api.user("ada").get(f"/api/v1/operations/{made.json()['operation_id']}").json()
    assert (shown["status"], shown["type"], shown["logs"]) == ("queued", "operation", [])


@pytest.mark.parametrize(
    ("named", "says"),
    [("", "is no task type, and OPERATION_TYPE is unset"), ("gone", "OPERATION_TYPE names 'gone'")],
)
def test_a_missing_type_names_the_setting(settings: Settings, tmp_path: Path, named: str, says: str) -> None:
    (tmp_path / "tasks.yaml").write_text("types: {only: {program: [echo]}}")
    chosen = changed(settings, tasks_file=tmp_path / "tasks.yaml", operation_type=named)
    with serving(chosen, migrated=False) as api:
        body = {"app_signature": "demo", "operation_request_json": "{}"}
        answer = api.admin.post("/api/v1/operations", json=body)
        assert error_of(answer) == (422, "unknown_type")
        assert says in answer.json()["error"]["message"]
        assert "TASKS_FILE declares: only." in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("operation", {"permission_id": 4096, "app_signature": "demo"}),
        ("whole/now", {"app_signature": "demo", "operation_request_json": '{"permission_id": 4096}'}),
    ],
)
def test_operations_of_one_type(
    settings: Settings, tmp_path: Path, name: str, params: dict[str, Any]
) -> None:
    """With OPERATION_TYPE the signature is a parameter; the request is one too, or its fields are."""
    (tmp_path / "tasks.yaml").write_text(TYPES)
    chosen = changed(settings, tasks_file=tmp_path / "tasks.yaml", operation_type=name)
    with serving(chosen, migrated=False) as api:
        body = {"app_signature": "demo", "operation_request_json": '{"permission_id": 4096}'}
        made = api.admin.post("/api/v1/operations", json=body)
        assert made.status_code == 201, made.text
        run = api.admin.get(f"/v1/runs/{made.json()['operation_id']}").json()
        assert run["spec"]["params"] == params


PROJECT = {
    "db_conn": "postgresql://me:pass-of-db@db/app",
    "paths": {"uploads": "/data/uploads"},
    "env": {"REGION": "eu"},
    "secrets": {"MODEL_KEY": "key-of-model", "OTHER": "other-secret"},
}


def test_a_project_shows_names_and_never_values(api: Api) -> None:
    """What is secret goes in and is not seen again; what is open is by admins, its names by everybody."""
    put = api.admin.put("/v1/projects/p1", json=PROJECT)
    assert put.status_code == 201, put.text
    for path in ("/v1/projects/p1", "/projects/p1"):
        hidden = {"db_conn": "***", "secrets": ["MODEL_KEY", "OTHER"]}
        shown = api.admin.get(path).json()
        assert {name: shown[name] for name in PROJECT} == {**PROJECT, **hidden}
        shown = api.user("ada").get(path).json()
        names = {"paths": {"uploads": "***"}, "env": {"REGION": "***"}}
        assert {name: shown[name] for name in PROJECT} == {**names, **hidden}
    assert api.admin.put("/v1/projects/p1", json={"paths": {}}).status_code == 200
    kept = api.admin.get("/v1/projects/p1").json()
    assert (kept["db_conn"], kept["paths"], kept["secrets"]) == ("***", {}, ["MODEL_KEY", "OTHER"])
    body = {"db_conn": None, "secrets": {"OTHER": None}}
    less = api.admin.put("/v1/projects/p1", json=body).json()
    assert (less["db_conn"], less["secrets"]) == (None, ["OTHER"])


def test_what_is_secret_is_not_readable_in_the_database(settings: Settings, api: Api) -> None:
    """The whole row as text, whichever database it is: what is open is found, so the search works."""
    api.admin.put("/v1/projects/p1", json=PROJECT)
    url = settings.data.effective_database_url
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db:
            rows = str(db.execute("SELECT * FROM projects").fetchall())
    else:
        with psycopg.connect(url) as db:
            rows = str(db.execute("SELECT projects::text, * FROM projects").fetchall())
    assert "uploads" in rows
    for value in ("pass-of-db", "key-of-model", "other-secret"):
        assert value not in rows
        assert value.encode().hex() not in rows, "bytes as PostgreSQL shows them"


def test_only_admins_write_projects(api: Api) -> None:
    user = api.user("ada")
    assert error_of(user.put("/v1/projects/p1", json={})) == (403, "forbidden")
    assert error_of(user.delete("/v1/projects/default")) == (403, "forbidden")
    assert error_of(api.client().get("/projects/default")) == (401, "unauthorized")


def test_the_default_project_is_there_and_stays(api: Api) -> None:
    assert api.user("ada").get("/projects/default").json()["secrets"] == []
    assert error_of(api.admin.delete("/v1/projects/default")) == (409, "conflict")
    assert api.admin.put("/v1/projects/default", json={"env": {"A": "b"}}).status_code == 200
    assert error_of(api.admin.get("/v1/projects/none")) == (404, "not_found")
    api.admin.put("/v1/projects/p1", json={})
    assert api.admin.delete("/v1/projects/p1").status_code == 204
    assert error_of(api.admin.delete("/v1/projects/p1")) == (404, "not_found")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"env": {"HOME": "/x"}}, "env: HOME is set by Tailrun itself"),
        ({"secrets": {"a b": "never-shown"}}, "secrets: 'a b' is not the name of a variable"),
        ({"env": {"A": "1"}, "secrets": {"A": "never-shown"}}, "A is in env and in secrets"),
        ({"db_conn": "never-shown", "env": {"DB_CONN": "x"}}, "DB_CONN is the variable of db_conn"),
        ({"paths": {"a b": "/x"}}, "paths: 'a b' is no name"),
        ({"paths": {"a": 1}}, "paths.a must be a string"),
        ({"env": {"A": "x" * 70_000}}, "at most 64000 bytes"),
    ],
)
def test_a_project_that_no_program_can_be_given_is_refused(api: Api, body: dict[str, Any], says: str) -> None:
    response = api.admin.put("/v1/projects/p1", json=body)
    assert response.status_code == 422
    assert says in response.json()["error"]["message"]
    assert "never-shown" not in response.text


def test_without_a_key_only_open_things_are_kept(settings: Settings) -> None:
    with serving(changed(settings, projects_key=None), migrated=False) as api:
        assert api.admin.put("/v1/projects/p1", json={"paths": {"a": "/b"}}).status_code == 201
        refused = api.admin.put("/v1/projects/p1", json=PROJECT)
        assert error_of(refused) == (503, "no_projects_key")


def test_keys_are_changed_without_a_stop(settings: Settings) -> None:
    """The new key in front, the old one behind: both open; alone, a wrong one says what to do."""
    with serving(settings, migrated=False) as api:
        api.admin.put("/v1/projects/p1", json=PROJECT)
    both = changed(settings, projects_key=SecretStr(f"{OTHER_KEY}, {KEY}"))
    with serving(both, migrated=False) as api:
        assert api.admin.put("/v1/projects/p1", json={"env": {}}).status_code == 200
    new = changed(settings, projects_key=SecretStr(OTHER_KEY))
    with serving(new, migrated=False) as api:
        assert api.admin.put("/v1/projects/p1", json={"paths": {}}).status_code == 200
    with serving(settings, migrated=False) as api:
        assert error_of(api.admin.put("/v1/projects/p1", json={})) == (503, "wrong_projects_key")
        assert api.admin.get("/v1/projects/p1").status_code == 200
        assert api.admin.put("/v1/projects/p1", json=PROJECT).status_code == 200


def test_auth_off_lets_this_machine_in(settings: Settings) -> None:
    """curl needs no token; one that is sent is still checked."""
    with serving(changed(settings, auth="off"), migrated=False) as api:
        client = api.client()
        made = client.post(
            "/api/v1/operations", content='{"app_signature":"seed-db","operation_request_json":"{}"}'
        )
        assert made.status_code == 201, made.text
        assert made.json()["user_id"] == "admin"
        assert client.get("/v1/tokens").status_code == 200
        assert error_of(api.client("wrong").get("/v1/runs")) == (401, "unauthorized")
        assert api.client(TOKEN).get("/v1/runs").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_auth_off_is_refused_where_others_could_reach_it(
    settings: Settings, host: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert serve(changed(settings, auth="off", host=host)) == 1
    said = "".join(capfd.readouterr())
    assert "HOST must be a loopback address" in said


def test_a_tasks_file_with_mistakes_stops_the_start(
    settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each mistake is a line of the log, with the file's line."""
    path = tmp_path / "tasks.yaml"
    path.write_text("types:\n  a: {}\n  b: {program: [x], porgram: y}\n")
    assert serve(changed(settings, tasks_file=path)) == 1
    said = "".join(capfd.readouterr())
    assert f"{path}:2: types.a.program is required" in said
    assert f"{path}:3: types.b.porgram is not a field; did you mean 'program'?" in said
