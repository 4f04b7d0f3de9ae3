"""Where a worker gets a project from: its database, or a service that may be slow, wrong or away."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from app.config import Settings
from app.core.errors import Unavailable
from app.db.engine import Database
from app.db.project_store import Change, ProjectStore
from app.plan.projects import ProjectConfig
from app.worker import project_source
from app.worker.project_source import TRIES, ProjectSource
from tailrun.process.errors import ErrorCode, RunFailure

KEY, NEW_KEY = (base64.urlsafe_b64encode(byte * 32).decode() for byte in (b"k", b"n"))
SHOP: dict[str, Any] = {"db_conn": "db://x", "paths": {"up": "/up"}, "env": {"A": "b"}, "since": 7}


class Upstream:
    """A service of projects: answers what it was told to, in turn, the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str]] = [(200, json.dumps(SHOP))]
        self.asked: list[tuple[str, str | None]] = []
        self.hold = threading.Event()
        self.hold.set()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                upstream.asked.append((self.path, self.headers.get("Authorization")))
                upstream.hold.wait(60)
                answers = upstream.answers
                status, body = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its parent's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/base/"

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.close()


@pytest.fixture
def store(database: Database) -> ProjectStore:
    return ProjectStore(database, KEY)


async def asked(store: ProjectStore, project: str = "shop", **settings: Any) -> ProjectConfig:
    source = ProjectSource(store, Settings(**settings).projects)
    try:
        return await source.fetch(project)
    finally:
        await source.close()


async def failure(store: ProjectStore, project: str = "shop", **settings: Any) -> RunFailure:
    with pytest.raises(RunFailure) as failed:
        await asked(store, project, **settings)
    assert failed.value.code is ErrorCode.PROJECT_UNAVAILABLE
    return failed.value


async def test_from_the_database(store: ProjectStore) -> None:
    """With its secrets; what is not there is final."""
    change = Change(paths={"a": "/b"}, env={}, sets_db_conn=True, db_conn="db://x", secrets={"K": "v"})
    await store.put("shop", change, 1)
    assert await asked(store) == ProjectConfig("shop", "db://x", {"a": "/b"}, {}, {"K": "v"})
    assert await asked(store, "default") == ProjectConfig("default")
    gone = await failure(store, "gone")
    assert not gone.retried
    assert "v" not in repr(await asked(store)).replace("shop", "")


async def test_a_key_that_is_not_there_yet_is_tried_again(store: ProjectStore, database: Database) -> None:
    """The operator may bring it; the message says what to do."""
    await store.put("shop", Change(paths={}, env={}, secrets={"K": "v"}), 1)
    assert "PROJECTS_KEY is not set" in (none := await failure(ProjectStore(database, None))).message
    assert "PROJECTS_KEY is not the key" in (wrong := await failure(ProjectStore(database, NEW_KEY))).message
    assert none.retried
    assert wrong.retried


async def test_resealing_lets_the_old_key_go(store: ProjectStore, database: Database) -> None:
    await store.put("shop", Change(paths={}, env={}, secrets={"K": "v"}), 1)
    assert await ProjectStore(database, f"{NEW_KEY},{KEY}").reseal() == ["shop"]
    assert (await asked(ProjectStore(database, NEW_KEY))).secrets == {"K": "v"}
    await failure(store)


async def test_who_makes_a_project_at_the_same_time_changes_it(store: ProjectStore) -> None:
    """None of them fails, and what is to be kept is kept from the one before."""
    changes = [Change(paths={}, env={"N": str(n)}, secrets={"kept": None}) for n in range(8)]
    changes[0] = Change(paths={}, env={}, secrets={"kept": "x"})
    made = await asyncio.gather(*(store.put("new", change, n) for n, change in enumerate(changes)))
    assert sum(new for _, new in made) == 1
    await store.put("new", changes[0], 9)
    await asyncio.gather(*(store.put("new", change, n) for n, change in enumerate(changes[1:])))
    project = await store.load("new")
    assert project is not None
    assert project.secrets == {"kept": "x"}


async def test_what_is_sealed_opens_in_its_own_row_only(store: ProjectStore, database: Database) -> None:
    """Who can write to the database can't give one project the secrets of another."""
    await store.put("shop", Change(paths={}, env={}, secrets={"K": "v"}), 1)
    await store.put("thief", Change(paths={}, env={}, secrets={"K": "mine"}), 1)
    move = "UPDATE projects SET secrets = (SELECT secrets FROM projects WHERE id = 'shop') WHERE id = 'thief'"
    await database.write(lambda connection: connection.exec_driver_sql(move))
    with pytest.raises(Unavailable):
        await store.load("thief")


async def test_from_a_service(store: ProjectStore, upstream: Upstream) -> None:
    """With a token; ids are quoted; what we don't know is its own business."""
    token = SecretStr("t0ken")
    config = await asked(store, "sh/op", projects_url=upstream.url, projects_token=token)
    assert config == ProjectConfig("sh/op", "db://x", {"up": "/up"}, {"A": "b"})
    assert upstream.asked == [("/base/projects/sh%2Fop", "Bearer t0ken")]


async def test_a_service_that_stumbles_is_asked_again(store: ProjectStore, upstream: Upstream) -> None:
    upstream.answers = [(503, ""), (429, ""), (200, "{}")]
    assert await asked(store, projects_url=upstream.url) == ProjectConfig("shop")
    assert len(upstream.asked) == TRIES


@pytest.mark.parametrize(
    ("status", "body", "says", "retried", "times"),
    [
        (500, "", "status 500", True, TRIES),
        (403, "", "status 403", True, 1),
        (302, "", "status 302", True, 1),
        (404, "", "knows no project 'shop'", False, 1),
        (200, "<html>", "it is no JSON", True, 1),
        (200, '{"paths": {"a": 1}}', "paths.a must be a string", True, 1),
        (200, '{"env": {"HOME": "/x"}}', "HOME is set by Tailrun", True, 1),
    ],
)
async def test_a_service_that_does_not_give_a_project(
    store: ProjectStore, upstream: Upstream, *, status: int, body: str, says: str, retried: bool, times: int
) -> None:
    """The code is the same; only a project that does not exist is final."""
    upstream.answers = [(status, body)]
    failed = await failure(store, projects_url=upstream.url)
    assert says in failed.message
    assert (failed.retried, len(upstream.asked)) == (retried, times)


async def test_a_service_that_is_away_or_silent(
    store: ProjectStore, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for no longer than its time."""
    upstream.hold.clear()
    monkeypatch.setattr(project_source, "TIMEOUT_S", 0.2)
    assert (await failure(store, projects_url=upstream.url)).retried
    monkeypatch.undo()
    upstream.close()
    assert (await failure(store, projects_url=upstream.url)).retried
