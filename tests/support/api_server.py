"""The API for tests: the real server on a real port, in a thread, over real Redis and database."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import anyio
import httpx2
from pydantic import SecretStr

from app.config import Settings
from app.db.engine import Database
from app.db.migrate import migrate
from app.db.run_store import RunStore
from app.main import Server, create_app, listen
from app.redis.clients import RedisClients

T = TypeVar("T")
TOKEN = "bootstrap-token"


@dataclass
class Api:
    """A served API: `admin` and `user(…)` are clients, `store(…)` goes behind its back."""

    url: str
    settings: Settings
    server: Server
    thread: threading.Thread
    clients: list[httpx2.Client] = field(default_factory=list[httpx2.Client])

    def client(self, token: str | None = None) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx2.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)
        self.clients.append(client)
        return client

    def narrow_socket(self) -> socket.socket:
        """A connection whose kernel takes next to nothing for a client who does not read."""
        host, port = self.url.removeprefix("http://").split(":")
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((host, int(port)))
        sock.setblocking(False)
        return sock

    @property
    def admin(self) -> httpx2.Client:
        return self.client(TOKEN)

    def user(self, name: str, scope: str = "user") -> httpx2.Client:
        made = self.admin.post("/v1/tokens", json={"user_id": name, "scope": scope})
        assert made.status_code == 201, made.text
        return self.client(made.json()["token"])

    def store(self, work: Callable[[RunStore], Awaitable[T]]) -> T:
        """Do something with the run store, as a worker would."""

        async def run() -> T:
            db = Database(self.settings.data.effective_database_url)
            try:
                return await work(RunStore(db))
            finally:
                await db.close()

        return anyio.run(run)

    def redis(self, work: Callable[[RedisClients], Awaitable[T]]) -> T:
        """Do something in Redis, as a worker would."""

        async def run() -> T:
            clients = RedisClients(self.settings.redis.effective_url, self.settings.redis.prefix)
            try:
                return await work(clients)
            finally:
                await clients.close()

        return anyio.run(run)

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        self.server.handle_exit(15, None)
        self.thread.join(60)
        assert not self.thread.is_alive(), "the server did not stop"


def settings_for(folder: Path, redis_url: str, database_url: str, **more: Any) -> Settings:
    return Settings(
        data_dir=folder,
        redis_url=SecretStr(redis_url),
        database_url=SecretStr(database_url),
        api_token=SecretStr(TOKEN),
        **more,
    )


def changed(settings: Settings, **more: Any) -> Settings:
    """Return the settings with some others."""
    return Settings(**{name.lower(): value for name, value in settings.flat().items()} | more)


@contextmanager
def serving(
    settings: Settings, *, migrated: bool = True, more: Sequence[socket.socket] = ()
) -> Generator[Api]:
    """Serve until the block ends; on `more` sockets as well.

    No run is told that no worker is alive: there is none here, and how long a test takes is chance.
    """
    if migrated:
        migrate(settings.data.effective_database_url)
    sock = listen("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(create_app(settings), ready.set)
    thread = threading.Thread(target=server.serve_on, args=(sock, *more), name="api")
    with patch("app.main.NO_WORKER_AFTER_S", math.inf):
        thread.start()
        assert ready.wait(60), "the server did not start"
    api = Api(f"http://127.0.0.1:{sock.getsockname()[1]}", settings, server, thread)
    try:
        yield api
    finally:
        api.stop()


def error_of(response: httpx2.Response) -> tuple[int, str]:
    """Return status and code of an error, having checked its shape."""
    body = response.json()
    assert body.keys() == {"error"}, body
    assert body["error"].keys() == {"code", "message"}, body
    assert body["error"]["message"]
    return response.status_code, body["error"]["code"]
