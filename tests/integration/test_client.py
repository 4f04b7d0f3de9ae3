"""Both clients against a real HTTP server that cuts, refuses and repeats."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing, nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from support.servers import free_port

from tailrun import (
    AsyncClient,
    Client,
    Conflict,
    Event,
    Forbidden,
    Invalid,
    NotFound,
    ServerError,
    TailrunError,
    TooManyRequests,
    Unauthorized,
    Unreachable,
)

RUN = "r1"


def frame(seq: int, kind: str = "log") -> bytes:
    body = {"seq": seq, "type": kind, "ts": "", "run_id": RUN, "attempt": 1, "content": f"Zeile {seq} ü"}
    if kind == "end":
        body["status"] = "succeeded"
    return f"id: {seq}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


FRAMES = [frame(n) for n in range(1, 6)] + [frame(6, "end")]
STREAM = b"retry: 2000\n\n: ping\n\n" + b"".join(FRAMES)


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class FakeAPI:
    """Answers with `script(request)`; a body shorter than its Content-Length is a cut connection."""

    script: Callable[[Seen], Answer] = lambda _: (200, {}, b"{}")
    seen: list[Seen] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def last_ids(self) -> list[str | None]:
        return [request.headers.get("last-event-id") for request in self.seen]


@pytest.fixture
def api() -> Iterator[FakeAPI]:
    fake = FakeAPI()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(size) if size else self._chunked()
            seen = Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            fake.seen.append(seen)
            status, headers, content = fake.script(seen)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def _chunked(self) -> bytes:
            body = b""
            while self.headers.get("transfer-encoding") == "chunked":
                size = int(self.rfile.readline(), 16)
                body += self.rfile.read(size)
                self.rfile.readline()
                if size == 0:
                    break
            return body

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(api: FakeAPI) -> Iterator[Client]:
    with Client(api.url, "secret") as client:
        yield client


def after(request: Seen) -> int:
    return int(request.headers.get("last-event-id", "0"))


def rest(request: Seen) -> bytes:
    return b"".join(FRAMES[after(request) :])


def cut(body: bytes, at: int) -> Answer:
    return 200, {"Content-Length": str(len(body) + 1)}, body[:at]


def seqs(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


@pytest.mark.parametrize("at", [0, 5, 30, *range(60, len(STREAM), 23)])
def test_a_stream_cut_at_any_byte_gives_each_event_once(api: FakeAPI, client: Client, at: int) -> None:
    api.script = lambda request: cut(STREAM, at) if len(api.seen) == 1 else (200, {}, rest(request))
    assert seqs(list(client.stream(RUN))) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("at", [0, 100, 250, 400, 555])
async def test_the_async_client_resumes_too(api: FakeAPI, at: int) -> None:
    api.script = lambda request: cut(STREAM, at) if len(api.seen) == 1 else (200, {}, rest(request))
    async with AsyncClient(api.url, "secret") as client:
        assert [event.seq async for event in client.stream(RUN)] == [1, 2, 3, 4, 5, 6]


async def test_an_async_stream_can_be_left_early(api: FakeAPI) -> None:
    api.script = lambda _: (200, {}, STREAM)
    async with AsyncClient(api.url, "secret") as client, aclosing(client.stream(RUN)) as events:
        async for event in events:
            assert event.seq == 1
            break


def test_events_that_come_again_are_dropped(api: FakeAPI, client: Client) -> None:
    api.script = lambda _: cut(STREAM, 300) if len(api.seen) == 1 else (200, {}, STREAM)
    assert seqs(list(client.stream(RUN))) == [1, 2, 3, 4, 5, 6]


def test_a_reconnect_says_where_it_was(api: FakeAPI, client: Client) -> None:
    api.script = lambda request: (200, {}, FRAMES[after(request)])
    list(client.stream(RUN))
    assert api.last_ids() == [None, "1", "2", "3", "4", "5"]


def test_204_ends_the_stream(api: FakeAPI, client: Client) -> None:
    api.script = lambda _: (204, {}, b"")
    assert list(client.stream(RUN, after=6)) == []
    assert api.last_ids() == ["6"]


def test_a_server_that_is_not_ready_is_asked_again(api: FakeAPI, client: Client) -> None:
    busy = 503, {"Retry-After": "0"}, b'{"error":{"code":"unavailable","message":"starting"}}'
    api.script = lambda _: busy if len(api.seen) < 3 else (200, {}, STREAM)
    told: list[tuple[float, TailrunError | None]] = []
    events = client.stream(RUN, on_reconnect=lambda delay, error: told.append((delay, error)))
    assert seqs(list(events)) == [1, 2, 3, 4, 5, 6]
    assert [str(error) for _, error in told] == ["starting", "starting"]


def test_an_unknown_run_is_not_asked_for_again(api: FakeAPI, client: Client) -> None:
    api.script = lambda _: (404, {}, b'{"error":{"code":"not_found","message":"no run r1"}}')
    with pytest.raises(NotFound, match="no run r1"):
        list(client.stream(RUN))
    assert len(api.seen) == 1


def test_patience_ends() -> None:
    with (
        Client(f"http://127.0.0.1:{free_port()}", "t") as client,
        pytest.raises(Unreachable, match="has been away"),
    ):
        list(client.stream(RUN, patience_s=0.3))


def test_filters_and_tail_are_asked_for_and_tail_only_once(api: FakeAPI, client: Client) -> None:
    api.script = lambda _: (200, {}, FRAMES[4] if len(api.seen) == 1 else FRAMES[5])
    list(client.stream(RUN, tail=2, level="warning", stream="stderr"))
    assert [request.path for request in api.seen] == [
        "/v1/runs/r1/stream?level=warning&stream=stderr&tail=2",
        "/v1/runs/r1/stream?level=warning&stream=stderr",
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Unauthorized), (403, Forbidden), (404, NotFound), (409, Conflict), (422, Invalid)],
)
def test_errors_are_typed(api: FakeAPI, client: Client, status: int, kind: type[Exception]) -> None:
    api.script = lambda _: (status, {}, b'{"error":{"code":"c","message":"do this"}}')
    with pytest.raises(kind, match="do this"):
        client.get(RUN)


def test_a_limit_says_when_to_come_back(api: FakeAPI, client: Client) -> None:
    api.script = lambda _: (429, {"Retry-After": "7"}, b'{"error":{"code":"c","message":"slow"}}')
    with pytest.raises(TooManyRequests) as caught:
        client.queue()
    assert caught.value.retry_after_s == 7


def test_a_proxys_page_is_an_error_with_its_text(api: FakeAPI, client: Client) -> None:
    api.script = lambda _: (502, {}, b"<h1>Bad gateway</h1>")
    with pytest.raises(ServerError, match="Bad gateway"):
        client.get(RUN)


def test_a_stranger_behind_the_url_is_named(api: FakeAPI, client: Client) -> None:
    api.script = lambda _: (200, {}, b"<h1>hi</h1>")
    with pytest.raises(Unreachable, match="check the URL"):
        client.get(RUN)


def test_nobody_there() -> None:
    with Client(f"http://127.0.0.1:{free_port()}", "t") as client, pytest.raises(Unreachable):
        client.get(RUN)


def test_create_sends_what_was_given_and_no_more(api: FakeAPI, client: Client) -> None:
    client.create(argv=["true"], labels={"a": "b"}, timeout_s=None, idempotency_key="k1")
    request = api.seen[0]
    assert (request.method, request.path) == ("POST", "/v1/runs")
    assert json.loads(request.body) == {"argv": ["true"], "start": True, "labels": {"a": "b"}}
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["idempotency-key"] == "k1"


def test_file_paths_are_quoted(api: FakeAPI, client: Client, tmp_path: Path) -> None:
    source = tmp_path / "x"
    source.write_bytes(b"from a file")
    client.upload(RUN, "a b/c?#ü.txt", source)
    client.upload(RUN, "d", b"bytes")
    assert api.seen[0].path == "/v1/runs/r1/files/a%20b/c%3F%23%C3%BC.txt?executable=false"
    assert [request.body for request in api.seen] == [b"from a file", b"bytes"]


CONTENT = bytes(range(256)) * 3000


def in_a_file(folder: Path) -> Path:
    source = folder / "big"
    source.write_bytes(CONTENT)
    return source


def behind_its_start(folder: Path) -> BinaryIO:
    file = in_a_file(folder).open("rb")
    file.seek(256)
    return file


def pipe(_: Path) -> BinaryIO:
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    os.close(writer)
    return os.fdopen(reader, "rb")


class Growing(BytesIO):
    """A log that somebody writes: longer at each read than it was before."""

    def read(self, size: int | None = -1) -> bytes:
        position = self.tell()
        self.seek(0, os.SEEK_END)
        self.write(b"more")
        self.seek(position)
        return super().read(size)


UPLOADS: dict[str, tuple[Callable[[Path], bytes | Path | BinaryIO], bytes, int | None]] = {
    "bytes": (lambda _: CONTENT, CONTENT, len(CONTENT)),
    "no bytes": (lambda _: b"", b"", 0),
    "a path": (in_a_file, CONTENT, len(CONTENT)),
    "an empty file": (lambda _: Path(os.devnull), b"", None),
    "a file from its position on": (behind_its_start, CONTENT[256:], len(CONTENT) - 256),
    "a file in memory": (lambda _: BytesIO(CONTENT), CONTENT, len(CONTENT)),
    "a pipe": (pipe, b"from a pipe", None),
    "a file that grows": (lambda _: Growing(CONTENT), CONTENT, len(CONTENT)),
}
"""What is uploaded, what arrives, and the size that is announced."""


def arrived(api: FakeAPI) -> tuple[bytes, int | None]:
    [request] = api.seen
    announced = request.headers.get("content-length")
    assert (announced is None) == (request.headers.get("transfer-encoding") == "chunked")
    return request.body, None if announced is None else int(announced)


@pytest.mark.parametrize("kind", UPLOADS)
def test_an_upload_arrives_whole(api: FakeAPI, client: Client, tmp_path: Path, kind: str) -> None:
    source, *expected = UPLOADS[kind]
    content = source(tmp_path)
    with nullcontext() if isinstance(content, bytes | Path) else content:
        client.upload(RUN, "f", content)
    assert arrived(api) == tuple(expected)


@pytest.mark.parametrize("kind", UPLOADS)
async def test_an_upload_of_the_async_client_arrives_whole(api: FakeAPI, tmp_path: Path, kind: str) -> None:
    source, *expected = UPLOADS[kind]
    content = source(tmp_path)
    async with AsyncClient(api.url, "secret") as client:
        with nullcontext() if isinstance(content, bytes | Path) else content:
            await client.upload(RUN, "f", content)
    assert arrived(api) == tuple(expected)


def test_a_stream_can_be_left_early(api: FakeAPI, client: Client) -> None:
    api.script = lambda _: (200, {}, STREAM)
    with closing(client.stream(RUN)) as events:
        assert next(events).seq == 1
    assert seqs(list(client.stream(RUN))) == [1, 2, 3, 4, 5, 6]


def test_a_download_comes_in_pieces(api: FakeAPI, client: Client) -> None:
    api.script = lambda _: (200, {}, b"y" * 100_000)
    assert b"".join(client.download(RUN, "f")) == b"y" * 100_000


def test_a_missing_file_is_an_error_before_the_first_piece(api: FakeAPI, client: Client) -> None:
    api.script = lambda _: (404, {}, b'{"error":{"code":"not_found","message":"no file f"}}')
    with pytest.raises(NotFound, match="no file f"):
        next(client.download(RUN, "f"))


def test_logs_are_paged(api: FakeAPI, client: Client) -> None:
    body = {"events": [{"seq": 4, "type": "log", "content": "x"}], "next_after": 4}
    api.script = lambda _: (200, {}, json.dumps(body).encode())
    events, more = client.logs(RUN, after=3, limit=1, level="error")
    assert (seqs(events), more) == ([4], 4)
    assert api.seen[0].path == "/v1/runs/r1/logs?after=3&limit=1&level=error"


def test_an_event_keeps_fields_that_it_does_not_know() -> None:
    body = {"seq": 1, "type": "new", "ts": "t", "run_id": RUN, "attempt": 0, "colour": "blue"}
    assert Event.of(body).as_dict() == body
