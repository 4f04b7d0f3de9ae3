"""Every route × every kind of caller: who is let in, and with what everybody else is refused.

The routes come from the OpenAPI document (and the WebSocket routes, which it has no words for), so a
new one fails here until the table says whom it is for.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import anyio
import httpx2
import orjson
import pytest
import websockets
from pydantic import SecretStr
from starlette.routing import WebSocketRoute
from support.api_server import TOKEN, Api, error_of, serving, settings_for
from support.servers import RedisServer
from support.waiting_run import STEP, waiting_run
from websockets.sync.client import connect

from app.config import Settings
from app.db.engine import Database
from app.db.token_store import TokenStore
from app.main import create_app
from app.routes import websocket
from app.routes.agents import EXAMPLE_HASH
from app.storage.api_staging import TOKEN_HEADER, Way
from app.storage.factory import staged_files

DOCUMENT: dict[str, Any] = create_app(Settings()).openapi()
OPERATIONS = {f"{m.upper()} {path}": one for path, ms in DOCUMENT["paths"].items() for m, one in ms.items()}
SOCKETS = [f"WS {route.path}" for route in websocket.router.routes if isinstance(route, WebSocketRoute)]
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")
PROJECTS_TOKEN = "token-of-the-service-of-projects"
KEY = "tool-00000000000000aa"

OWNER, OTHER, ADMIN, BOOTSTRAP = "owner", "another user", "admin", "API_TOKEN"
STREAM, STREAM_QUERY = "stream token of this run", "the same in the query"
FOREIGN_STREAM, FOREIGN_STREAM_QUERY = "stream token of another run", "that one in the query"
STAGING = "staging token"
NOBODY = ("none", "wrong", "no scheme", "other scheme", "empty", "revoked", "expired", "service of projects")
NOBODY += ("made by a revoked one, in the query", "whole token in the query", "user's as staging token")
CALLERS = (
    *NOBODY,
    OWNER,
    OTHER,
    ADMIN,
    BOOTSTRAP,
    STREAM,
    STREAM_QUERY,
    FOREIGN_STREAM,
    FOREIGN_STREAM_QUERY,
)
CALLERS += (STAGING,)
USERS = {OWNER, OTHER, ADMIN, BOOTSTRAP}
OWN = USERS - {OTHER}


class Rule(NamedTuple):
    """Who is let in; what the others get (`default` where they are not named)."""

    let_in: set[str]
    refused: dict[str, int]
    default: int = 401


OPEN = Rule(set(CALLERS), {})
ANY_USER = Rule(USERS, {})
OWN_THING = Rule(OWN, {OTHER: 404})
ADMINS = Rule({ADMIN, BOOTSTRAP}, {OWNER: 403, OTHER: 403})
STREAMS = Rule({*OWN, STREAM, STREAM_QUERY}, {OTHER: 404, FOREIGN_STREAM: 404, FOREIGN_STREAM_QUERY: 404})
PODS = Rule({STAGING}, {}, 404)

# route → whom it is for, and the status of those who are let in
TABLE: dict[str, tuple[Rule, int]] = {
    "POST /v1/runs": (ANY_USER, 201),
    "GET /v1/runs": (ANY_USER, 200),
    "GET /v1/runs/{run_id}": (OWN_THING, 200),
    "GET /v1/runs/{run_id}/steps": (OWN_THING, 200),
    "POST /v1/runs/{run_id}/start": (OWN_THING, 409),  # it has ended
    "POST /v1/runs/{run_id}/cancel": (OWN_THING, 200),
    "POST /v1/runs/{run_id}/retry": (OWN_THING, 201),
    "POST /v1/runs/{run_id}/stream-token": (OWN_THING, 201),
    "GET /v1/runs/{run_id}/webhook": (OWN_THING, 200),
    "GET /v1/approvals": (ANY_USER, 200),
    "GET /v1/runs/{run_id}/approvals": (OWN_THING, 200),
    "GET /v1/runs/{run_id}/approvals/{step}": (OWN_THING, 200),
    "POST /v1/runs/{run_id}/approvals/{step}": (OWN_THING, 200),
    "POST /v1/runs/{run_id}/messages": (OWN_THING, 202),
    "GET /v1/runs/{run_id}/calls": (OWN_THING, 200),
    "GET /v1/runs/{run_id}/calls/{n}": (OWN_THING, 200),
    "GET /v1/runs/{run_id}/transcript": (OWN_THING, 200),
    "GET /v1/models": (ANY_USER, 200),
    "GET /v1/runs/{run_id}/logs": (OWN_THING, 200),
    "GET /agent/logs/{run_id}": (OWN_THING, 200),
    "GET /v1/runs/{run_id}/stream": (STREAMS, 200),
    "GET /agent/logs/{run_id}/stream": (STREAMS, 200),
    "GET /runs/{run_id}/logs/stream": (STREAMS, 200),
    "GET /logs/stream": (STREAMS, 200),
    "GET /api/v1/operations/{run_id}/stream": (STREAMS, 200),
    "WS /v1/runs/{run_id}/stream": (STREAMS, 1000),
    "WS /tasks/{run_id}/watch": (STREAMS, 1000),
    "GET /v1/runs/{run_id}/files": (OWN_THING, 200),
    "GET /v1/runs/{run_id}/files/{path}": (OWN_THING, 200),
    "PUT /v1/runs/{run_id}/files/{path}": (OWN_THING, 200),
    "DELETE /v1/runs/{run_id}/files/{path}": (OWN_THING, 204),
    "GET /v1/runs/{run_id}/archive": (OWN_THING, 200),
    "POST /agent/execute": (ANY_USER, 201),
    "POST /execute": (ANY_USER, 201),
    "POST /tasks": (ANY_USER, 201),
    "GET /tasks/{run_id}": (OWN_THING, 200),
    "GET /v1/task-types": (ANY_USER, 200),
    "POST /api/v1/operations": (ANY_USER, 201),
    "GET /api/v1/operations/{run_id}": (OWN_THING, 200),
    "GET /projects/{project_id}": (ANY_USER, 200),
    "GET /v1/projects/{project_id}": (ANY_USER, 200),
    "PUT /v1/projects/{project_id}": (ADMINS, 200),
    "DELETE /v1/projects/{project_id}": (ADMINS, 204),
    "GET /v1/schedules": (ANY_USER, 200),
    "POST /v1/schedules": (ANY_USER, 201),
    "GET /v1/schedules/{schedule_id}": (OWN_THING, 200),
    "DELETE /v1/schedules/{schedule_id}": (OWN_THING, 204),
    "GET /v1/queue": (ADMINS, 200),
    "GET /v1/dead": (ANY_USER, 200),
    "DELETE /v1/dead": (ANY_USER, 200),
    "POST /v1/dead/retry": (ANY_USER, 200),
    "GET /v1/dead/{name}": (OWN_THING, 200),
    "DELETE /v1/dead/{name}": (OWN_THING, 204),
    "POST /v1/dead/{run_id}/retry": (OWN_THING, 201),
    "GET /v1/tokens": (ADMINS, 200),
    "POST /v1/tokens": (ADMINS, 201),
    "DELETE /v1/tokens/{token_id}": (ADMINS, 204),
    "GET /v1/staging/{key}": (PODS, 200),
    "PUT /v1/staging/{key}": (PODS, 204),
    "GET /healthz": (OPEN, 200),
    "GET /readyz": (OPEN, 200),
    "GET /metrics": (OPEN, 200),
}

IN_THE_QUERY = {"GET /logs/stream"}
"""Routes whose run is in the query."""
OF_AN_AGENT = {
    "GET /v1/runs/{run_id}/approvals/{step}",
    "POST /v1/runs/{run_id}/approvals/{step}",
    "POST /v1/runs/{run_id}/messages",
    "GET /v1/runs/{run_id}/calls/{n}",
    "GET /v1/runs/{run_id}/transcript",
}
"""Routes that need a run which waits for an approval."""


@dataclass
class World:
    """A served API with users, and what they have."""

    api: Api
    redis: RedisServer
    http: httpx2.Client
    bearers: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        for name, user, scope in ((OWNER, "ada", "user"), (OTHER, "bob", "user"), (ADMIN, "eve", "admin")):
            self.bearers[name] = self.token(user, scope)["token"]
        self.bearers[BOOTSTRAP] = TOKEN
        self.other_run = self.run()
        maker = self.token("ada")
        self.bearers["revoked"] = maker["token"]
        self.made = self.stream_token(self.run(), maker["token"])
        assert self.as_(BOOTSTRAP, "DELETE", f"/v1/tokens/{maker['token_id']}").status_code == 204
        self.bearers["expired"] = anyio.run(self._expired)

    def as_(self, caller: str, method: str, path: str, **more: Any) -> httpx2.Response:
        bearer = {"Authorization": f"Bearer {self.bearers[caller]}"}
        return self.http.request(method, path, headers=bearer, **more)

    def token(self, user: str, scope: str = "user") -> dict[str, Any]:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        made = self.http.post("/v1/tokens", json={"user_id": user, "scope": scope}, headers=bearer)
        return made.json()

    def stream_token(self, run_id: str, bearer: str) -> str:
        headers = {"Authorization": f"Bearer {bearer}"}
        return self.http.post(f"/v1/runs/{run_id}/stream-token", headers=headers).json()["token"]

    def run(self) -> str:
        """A run of ada's that has ended, with a file, a webhook and a dead letter."""
        body = {"prompt": "x", "planner": "smoke", "webhook_url": "https://example.com/"}
        made = self.as_(OWNER, "POST", "/v1/runs", json=body)
        assert made.status_code == 201, made.text
        run_id = made.json()["run_id"]
        assert self.as_(OWNER, "PUT", f"/v1/runs/{run_id}/files/a.txt", content=b"x").status_code == 201
        assert self.as_(OWNER, "POST", f"/v1/runs/{run_id}/cancel").json()["status"] == "cancelled"
        letter = {"run_id": run_id, "entry": {"run_id": run_id}, "reason": "retries_exhausted"}
        with self.redis.client() as client:
            client.lpush("jobs:dead", orjson.dumps({**letter, "error": None, "at": "t", "raw": ""}))
        return run_id

    def project(self) -> str:
        name = f"p{uuid.uuid4().hex[:8]}"
        assert self.as_(BOOTSTRAP, "PUT", f"/v1/projects/{name}", json={}).status_code == 201
        return name

    def schedule(self) -> str:
        body = {"cron": "0 3 * * *", "run": {"prompt": "x", "planner": "smoke"}}
        made = self.as_(OWNER, "POST", "/v1/schedules", json=body)
        assert made.status_code == 201, made.text
        return made.json()["schedule_id"]

    def things(self, route: str) -> dict[str, str]:
        """What the path of a route names, made anew: ada's, but for what only admins have."""
        makers: dict[str, Callable[[], str]] = {
            "run_id": self.run,
            "name": self.run,
            "path": lambda: "a.txt",
            "project_id": self.project,
            "schedule_id": self.schedule,
            "token_id": lambda: self.token("x")["token_id"],
            "key": self.staged,
        }
        if route in OF_AN_AGENT:
            run_id = anyio.run(
                waiting_run, self.api.settings.data.effective_database_url, "ada", EXAMPLE_HASH
            )
            return {"run_id": run_id, "step": STEP, "n": "1"}
        named = re.findall(r"\{(\w+)\}", route) or (["run_id"] if route in IN_THE_QUERY else [])
        return {name: makers[name]() for name in named}

    def staged(self) -> str:
        files = staged_files(self.api.settings.data)
        files.make(KEY)
        part = files.begin(KEY, Way.DOWN)
        part.write(b"archive")
        part.finish()
        part.discard()
        return KEY

    def credentials(
        self, caller: str, route: str, things: dict[str, str]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Return the headers and the query with which a kind of caller comes."""
        owner = self.bearers[OWNER]
        run_id = things.get("run_id") or self.other_run
        if caller in self.bearers:
            return {"Authorization": f"Bearer {self.bearers[caller]}"}, {}
        way = Way.UP if route[:3] == "PUT" else Way.DOWN
        staged = staged_files(self.api.settings.data).token(KEY, way, 600)
        headers = {
            "wrong": {"Authorization": "Bearer tr_wrong"},
            "no scheme": {"Authorization": owner},
            "other scheme": {"Authorization": f"Basic {owner}"},
            "empty": {"Authorization": "Bearer"},
            "service of projects": {"Authorization": f"Bearer {PROJECTS_TOKEN}"},
            "user's as staging token": {TOKEN_HEADER: owner},
            STAGING: {TOKEN_HEADER: staged},
        }
        if caller in {STREAM, STREAM_QUERY}:
            token = self.stream_token(run_id, owner)
        else:
            token = self.stream_token(self.other_run, owner)
        headers |= {STREAM: {"Authorization": f"Bearer {token}"}}
        headers |= {FOREIGN_STREAM: headers[STREAM]}
        query = {
            STREAM_QUERY: token,
            FOREIGN_STREAM_QUERY: token,
            "whole token in the query": owner,
            "made by a revoked one, in the query": self.made,
        }
        return headers.get(caller, {}), {"access_token": query[caller]} if caller in query else {}

    async def _expired(self) -> str:
        db = Database(self.api.settings.data.effective_database_url)
        try:
            return (await TokenStore(db).create("ada", "admin", "old", 1, expires_at=2))[0]
        finally:
            await db.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("matrix")
    settings = settings_for(
        folder,
        shared_redis.url,
        f"sqlite:///{folder / 'tailrun.db'}",
        webhook_secret=SecretStr("whsec_" + "a" * 32),
        projects_token=SecretStr(PROJECTS_TOKEN),
        projects_key=SecretStr("A" * 43 + "="),
    )
    with serving(settings) as api:
        yield World(api, shared_redis, api.client())


def body_of(route: str, things: dict[str, str]) -> dict[str, Any]:
    """What a request carries: the document's first example, or a few bytes."""
    if route == "POST /v1/dead/retry":
        return {"content": orjson.dumps({"run_ids": [str(uuid.uuid4())]})}
    contents: dict[str, Any] = OPERATIONS[route].get("requestBody", {}).get("content", {})
    for content in contents.values():
        examples = list(content.get("examples", {}).values())
        return {"content": orjson.dumps(examples[0]["value"]) if examples else b"x"}
    return {}


def test_the_table_has_every_route() -> None:
    """One that is new needs an entry, one that has gone leaves none."""
    assert TABLE.keys() == {*OPERATIONS, *SOCKETS}


@pytest.mark.parametrize("route", OPERATIONS)
def test_who_is_let_in(world: World, route: str) -> None:
    """And what the others are told, whatever they send."""
    rule, status = TABLE[route]
    method, path = route.split(" ")
    things = world.things(route)
    wrong: list[str] = []
    for caller in (*sorted(set(CALLERS) - rule.let_in), *sorted(rule.let_in)):
        if caller in rule.let_in and method != "GET":
            things = world.things(route)
        headers, query = world.credentials(caller, route, things)
        if route == "DELETE /v1/dead":
            query |= {"id": "0" * 16}
        if route in IN_THE_QUERY:
            query |= {"run_id": things["run_id"]}
        answer = world.http.request(
            method, path.format(**things), headers=headers, params=query, **body_of(route, things)
        )
        expected = status if caller in rule.let_in else rule.refused.get(caller, rule.default)
        if answer.status_code != expected:
            wrong.append(f"{caller}: {answer.status_code}, not {expected}: {answer.text[:200]}")
        elif caller not in rule.let_in:
            error_of(answer)
    assert wrong == []


@pytest.mark.parametrize("route", SOCKETS)
def test_whose_sockets_are_opened(world: World, route: str) -> None:
    """Refusals are close codes: 4000 and the status."""
    rule, code = TABLE[route]
    things = world.things(route)
    for caller in CALLERS:
        headers, query = world.credentials(caller, route, things)
        address = world.api.url.replace("http", "ws", 1) + route.split(" ")[1].format(**things)
        address += f"?access_token={query['access_token']}" if query else ""
        with connect(address, additional_headers=headers, proxy=None, open_timeout=60) as socket:
            messages = 0
            with suppress(websockets.ConnectionClosedError):
                messages = len(list(socket))
            refused = 4000 + rule.refused.get(caller, rule.default)
            closed = socket.protocol.close_code
            assert closed == (code if caller in rule.let_in else refused), caller
            assert (messages > 0) is (caller in rule.let_in), caller


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_a_method_that_a_route_does_not_answer_is_a_405(world: World, path: str) -> None:
    """Whoever asks: nothing answers a method by accident."""
    patterns = {known: re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(known)) for known in DOCUMENT["paths"]}
    answered = {
        method.upper()
        for known, methods in DOCUMENT["paths"].items()
        if re.fullmatch(patterns[known], path)
        for method in methods
    }
    concrete = re.sub(r"\{\w+\}", "x", path)
    for method in set(METHODS) - answered:
        for caller in ("none", BOOTSTRAP):
            headers, _ = world.credentials(caller, "", {})
            answer = world.http.request(method, concrete, headers=headers)
            assert error_of(answer) == (405, "method_not_allowed"), f"{method} by {caller}"
