"""Upstash's REST API before a real server: commands as JSON arrays, one or many a request.

POST / with one command, /pipeline and /multi-exec with several; `Authorization: Bearer`;
`Upstash-Encoding: base64` encodes every string of a reply but OK. It can lose replies of what
was carried out, and it can be silent.
"""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import redis
from redis.connection import Connection

from support.servers import RedisServer

TOKEN = "rest-token"


@dataclass
class RestProxy:
    """What it was asked, and what goes wrong next."""

    url: str
    commands: list[list[str]] = field(default_factory=list[list[str]])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    lose_replies: int = 0
    silent: threading.Event = field(default_factory=threading.Event)
    """Set: nothing is answered until it is cleared."""

    @property
    def names(self) -> set[str]:
        return {command[0].upper() for command in self.commands}

    @property
    def settings(self) -> dict[str, str]:
        return {"UPSTASH_REDIS_REST_URL": self.url, "UPSTASH_REDIS_REST_TOKEN": TOKEN}


@contextmanager
def rest_proxy(server: RedisServer) -> Iterator[RestProxy]:
    """Serve on a free port until the block ends."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.daemon_threads = True
    proxy = RestProxy(f"http://127.0.0.1:{http.server_address[1]}")
    http.proxy, http.port = proxy, server.port  # pyright: ignore[reportAttributeAccessIssue]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.silent.clear()
        http.shutdown()
        thread.join()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        proxy: RestProxy = self.server.proxy  # pyright: ignore[reportAttributeAccessIssue]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        proxy.headers.append(dict(self.headers))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Unauthorized"})
            return
        many = self.path in {"/pipeline", "/multi-exec"}
        commands: list[list[str]] = body if many else [body]
        proxy.commands += commands
        replies = self._execute(commands, transaction=self.path == "/multi-exec")
        while proxy.silent.is_set() and not self.wfile.closed:
            threading.Event().wait(0.01)
        if proxy.lose_replies:
            proxy.lose_replies -= 1
            self.close_connection = True
            return
        status = 400 if not many and "error" in replies[0] else 200
        self._answer(status, replies if many else replies[0])

    def _execute(self, commands: list[list[str]], *, transaction: bool) -> list[dict[str, Any]]:
        connection = Connection(port=self.server.port, protocol=2)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            if transaction:
                connection.send_command("MULTI")
                connection.read_response()
            found = [self._one(connection, command) for command in commands]
            if transaction:
                connection.send_command("EXEC")
                found = [{"result": self._encoded(reply)} for reply in connection.read_response()]
            return found
        finally:
            connection.disconnect()

    def _one(self, connection: Connection, command: list[str]) -> dict[str, Any]:
        if any(not isinstance(word, str | int | float) for word in command):
            return {"error": "ERR a word of a command is no string"}
        connection.send_command(*command)
        try:
            return {"result": self._encoded(connection.read_response())}
        except redis.exceptions.NoScriptError as error:
            return {"error": f"NOSCRIPT {error}"}
        except redis.ResponseError as error:
            return {"error": str(error)}

    def _encoded(self, reply: Any) -> Any:
        if isinstance(reply, list):
            return [self._encoded(item) for item in reply]
        if not isinstance(reply, bytes):
            return reply
        if self.headers["Upstash-Encoding"] == "base64" and reply != b"OK":
            return b64encode(reply).decode()
        return reply.decode(errors="replace")

    def _answer(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        pass
