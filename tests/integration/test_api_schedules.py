"""Schedules over HTTP: made, listed, deleted; checked as a run is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.api_server import Api, error_of, serving, settings_for
from support.servers import RedisServer

from app.core.clock import parse_ts

NIGHTLY = {"cron": "30 2 * * *", "timezone": "Europe/Zurich", "run": {"argv": ["true"]}}


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, database_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path, redis_server.url, database_url)) as api:
        yield api


def test_a_schedule_is_made_listed_and_deleted(api: Api) -> None:
    """It shows what its runs are made of, as it may be posted, but never their environment."""
    ada = api.user("ada")
    run = {"argv": ["true"], "env": {"A": "b"}, "labels": {"x": "y"}, "priority": "high", "timeout_s": 5.0}
    response = ada.post("/v1/schedules", json={**NIGHTLY, "run": run})
    made = response.json()
    assert response.status_code == 201
    assert (made["cron"], made["timezone"], made["user_id"]) == ("30 2 * * *", "Europe/Zurich", "ada")
    assert made["run"] == {
        "argv": ["true"],
        "labels": {"x": "y"},
        "priority": "high",
        "timeout_s": 5.0,
        "max_attempts": 3,
    }
    assert 0 < parse_ts(made["next_at"]) - parse_ts(made["created_at"]) <= 25 * 3_600_000_000
    assert (made["last_at"], made["last_run_id"], made["last_error"]) == (None, None, None)
    assert ada.post("/v1/schedules", json={"cron": "* * * * *", "run": made["run"]}).status_code == 201
    assert ada.get("/v1/schedules").json()["items"][1] == made
    shown = ada.get(f"/v1/schedules/{made['schedule_id']}")
    assert (shown.status_code, shown.json()) == (200, made)
    assert ada.delete(f"/v1/schedules/{made['schedule_id']}").status_code == 204
    assert error_of(ada.delete(f"/v1/schedules/{made['schedule_id']}")) == (404, "not_found")
    assert error_of(ada.get(f"/v1/schedules/{made['schedule_id']}")) == (404, "not_found")
    assert len(ada.get("/v1/schedules").json()["items"]) == 1


def test_schedules_are_their_users(api: Api) -> None:
    """Somebody else's is not there; an admin sees and deletes all."""
    ada, bob = api.user("ada"), api.user("bob")
    made = ada.post("/v1/schedules", json=NIGHTLY).json()
    assert bob.get("/v1/schedules").json()["items"] == []
    assert error_of(bob.get(f"/v1/schedules/{made['schedule_id']}"))[0] == 404
    assert error_of(bob.delete(f"/v1/schedules/{made['schedule_id']}"))[0] == 404
    assert api.admin.get(f"/v1/schedules/{made['schedule_id']}").json() == made
    assert error_of(bob.get("/v1/schedules", params={"all": "1"}))[0] == 403
    assert api.admin.get("/v1/schedules").json()["items"] == []
    assert api.admin.get("/v1/schedules", params={"all": "1"}).json()["items"] == [made]
    assert api.admin.delete(f"/v1/schedules/{made['schedule_id']}").status_code == 204


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cron": "nonsense"}, "cron"),
        ({"cron": "0 0 31 2 *"}, "cron"),
        ({"cron": "0 0 */31 2 SUN#5"}, "cron"),
        ({"cron": 5}, "cron"),
        ({"timezone": "Mars/Phobos"}, "timezone"),
        ({"timezone": "/etc/passwd"}, "timezone"),
        ({"run": {}}, "prompt"),
        ({"run": {"prompt": "x", "planner": "smoke", "argv": ["y"]}}, "prompt"),
        ({"run": {"prompt": "x", "planner": "smoke", "nonsense": 1}}, "nonsense"),
        ({"run": {"prompt": "x", "planner": "smoke", "timeout_s": 1e9}}, "timeout_s"),
        ({"run": {"steps": [{"tool": "nonsense", "args": {}}]}}, "nonsense"),
        ({"run": {"argv": ["x"], "start": False}}, "start"),
        ({"run": {"prompt": "x", "planner": "smoke", "run_at": "2026-11-20T12:00:00Z"}}, "run_at"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_schedule_is_checked_as_a_run_is(api: Api, change: dict[str, Any], named: str) -> None:
    """Today, not in the night in which it is due."""
    response = api.admin.post("/v1/schedules", json=NIGHTLY | change)
    assert error_of(response)[0] == 422
    assert named in response.json()["error"]["message"]
    assert api.admin.get("/v1/schedules").json()["items"] == []


def test_files_of_others_are_none(api: Api) -> None:
    mine = api.admin.post("/v1/runs", json={"argv": ["x"], "start": False}).json()["run_id"]
    body = {**NIGHTLY, "run": {"argv": ["x"], "workspace_from": mine}}
    assert error_of(api.user("ada").post("/v1/schedules", json=body))[0] == 404
    assert api.admin.post("/v1/schedules", json=body).status_code == 201
