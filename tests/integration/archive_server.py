"""A store that fails as told: serves one archive, takes another, one fault per request."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "s3cr3t-5f1d"


class ArchiveServer(ThreadingHTTPServer):
    """`faults` are used up one a request: a status, `cut`, `hang` (until `released`), `drip`, `early`."""

    daemon_threads = True

    def __init__(self, archive: bytes, *faults: int | str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.archive = archive
        self.faults = list(faults)
        self.uploads: list[bytes] = []
        self.requests = 0
        self.hung = threading.Event()
        self.released = threading.Event()
        self.scheme = "http"

    def sync_json(self, **limits: int) -> dict[str, Any]:
        url = f"{self.scheme}://localhost:{self.server_port}/archive?signature={SECRET}"
        headers = {"Token": SECRET}
        return {
            "down": {"url": url, "headers": headers},
            "up": {"url": url, "headers": headers, "method": "PUT"},
            "limits": {"files": 100, "bytes": 10_000_000, **limits},
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients are meant to leave in the middle."""


@contextmanager
def serving_archive(
    archive: bytes, *faults: int | str, tls: ssl.SSLContext | None = None
) -> Iterator[ArchiveServer]:
    server = ArchiveServer(archive, *faults)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.scheme = "https"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ArchiveServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        fault = self._begin()
        data = self.server.archive
        if isinstance(fault, int):
            self._answer(
                fault, b"<Error><Code>AccessDenied</Code><Key>staging/" + SECRET.encode() + b"</Key></Error>"
            )
        elif fault == "drip":
            self._head(200, len(data))
            for byte in data:
                self.wfile.write(bytes([byte]))
                if self.server.released.wait(0.05):
                    return
        else:
            self._head(200, len(data))
            self.wfile.write(data[: len(data) // 2])
            if fault == "cut":
                self.close_connection = True
                return
            if fault == "hang":
                self._hang()
            self.wfile.write(data[len(data) // 2 :])

    def do_PUT(self) -> None:
        fault = self._begin()
        if fault in {"early", "cut"}:
            if fault == "early":
                self._answer(413, b"")
            self.close_connection = True
            return
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if fault == "hang":
            self._hang()
        if isinstance(fault, int):
            self._answer(fault, b"")
        else:
            self.server.uploads.append(data)
            self._answer(200, b"")

    def _begin(self) -> int | str | None:
        self.server.requests += 1
        assert self.headers["Token"] == SECRET
        assert self.path == f"/archive?signature={SECRET}"
        return self.server.faults.pop(0) if self.server.faults else None

    def _hang(self) -> None:
        self.server.hung.set()
        self.server.released.wait(100)

    def _answer(self, status: int, body: bytes) -> None:
        self._head(status, len(body))
        self.wfile.write(body)

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
