"""A model's server for tests: real HTTP on loopback, which says what it is told and misbehaves on purpose.

A test gives it scripts, one a request, each a list of acts; the last one serves all further requests.
It keeps what was asked, how many bytes of each answer went out, and whether the client hung up.

    server.script(Answer(sse(...)))                     a stream
    server.script(Answer(status=429, headers={...}))    an error
    server.script(Answer(body, Stall()))                a stream that stops and stays open
    server.script(Answer(body, Cut()))                  one that ends without an end of its chunks
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Stall:
    """Stay silent until the client hangs up, or the server is closed."""


@dataclass(frozen=True)
class Cut:
    """Close the connection in the middle of the answer."""


@dataclass(frozen=True)
class Repeat:
    """Send a piece again and again, every so many seconds."""

    piece: bytes
    every_s: float
    times: int = 1_000_000


@dataclass(frozen=True)
class Hang:
    """Send not even a head."""


@dataclass(frozen=True)
class Until:
    """Wait for the test."""

    event: threading.Event


Act = bytes | Stall | Cut | Repeat | Hang | Until


class Answer:
    """What a request gets: a head, then acts one after the other, each piece of bytes a chunk of its own."""

    def __init__(
        self,
        *acts: Act,
        status: int = 200,
        headers: dict[str, str] | None = None,
        content_type: str = "text/event-stream",
    ) -> None:
        self.acts = acts
        self.status = status
        self.headers = {"content-type": content_type, **(headers or {})}


def error(status: int, message: str, **named: Any) -> Answer:
    """An error as most servers write it; `retry_after` becomes the header."""
    headers = {"retry-after": str(named.pop("retry_after"))} if "retry_after" in named else {}
    body = json.dumps({"error": {"message": message, **named}}).encode()
    return Answer(body, status=status, headers=headers, content_type="application/json")


@dataclass
class Asked:
    """One request, and what became of its answer."""

    target: str
    headers: dict[str, str]
    body: dict[str, Any]
    sent: int = 0
    hung_up: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    came_at: float = field(default_factory=time.perf_counter)
    first_at: float = 0.0
    ended_at: float = 0.0
    """When it was whole, when the first piece of its answer went out and the last one; `perf_counter`."""


class ScriptedModel:
    """The server; `tls` makes it speak HTTPS."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        self.connections = 0
        self._answers: list[Answer] = []
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,))
        self._thread.start()
        assert started.wait(30)

    @property
    def url(self) -> str:
        """The base URL of chat completions."""
        return f"{self.root}/v1"

    @property
    def root(self) -> str:
        """The base URL of messages."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def script(self, *answers: Answer) -> None:
        """Answer the next requests so, in this order; the last one also all that follow."""
        self._answers = list(answers)

    def close(self) -> None:
        """Hang up on everybody and end."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run(started))
        finally:
            self._loop.close()

    async def _run(self, started: threading.Event) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls, backlog=1_000)
        self.port: int = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        early: bytes | None = b""
        try:
            while early is not None:
                early = await self._request(early, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _request(
        self, early: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes | None:
        """Serve one request, which begins with `early`; return what came of the next one, None at the end."""
        head = (early + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        real = dict(line.split(": ", 1) for line in head[1:] if line)
        asked = Asked(
            head[0].split(" ")[1],
            {name.lower(): value for name, value in real.items()},
            json.loads(raw) if raw else {},
        )
        self.asked.append(asked)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        watch = asyncio.ensure_future(reader.read(1))
        try:
            kept = await self._answer(answer, asked, writer, watch)
        finally:
            early = b""
            if watch.done():
                early = b"" if watch.exception() else watch.result()
                asked.hung_up = not early
            watch.cancel()
            await asyncio.wait([watch])  # the next request is read by another reader
            asked.ended.set()
        return early if kept and not asked.hung_up else None

    async def _answer(
        self, answer: Answer, asked: Asked, writer: asyncio.StreamWriter, watch: asyncio.Future[bytes]
    ) -> bool:
        if any(isinstance(act, Hang) for act in answer.acts):
            await asyncio.wait([watch])
            return False
        head = [f"HTTP/1.1 {answer.status} X", *(f"{k}: {v}" for k, v in answer.headers.items())]
        writer.write("\r\n".join([*head, "transfer-encoding: chunked", "", ""]).encode())
        for act in answer.acts:
            if isinstance(act, Cut):
                await writer.drain()
                return False
            if isinstance(act, Stall):
                await asyncio.wait([watch])
                return False
            if isinstance(act, Until):
                await asyncio.to_thread(act.event.wait, 60)
                continue
            times, piece = (act.times, act.piece) if isinstance(act, Repeat) else (1, act)
            for _ in range(times):
                if watch.done():
                    return False
                asked.first_at = asked.first_at or time.perf_counter()
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
                asked.sent += len(piece)
                if isinstance(act, Repeat):
                    await asyncio.wait([watch], timeout=act.every_s)
        writer.write(b"0\r\n\r\n")
        asked.ended_at = time.perf_counter()
        await writer.drain()
        return True


def chunk(delta: dict[str, Any] | None = None, **named: Any) -> bytes:
    """One event of chat completions; `finish` is the reason to end, everything else a field of the chunk."""
    finish = named.pop("finish", None)
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "c-1", "object": "chat.completion.chunk", "model": "scripted-1", "choices": choices}
    return b"data: " + json.dumps(body | named).encode() + b"\n\n"


def chat_reply(
    text: str = "", calls: Sequence[tuple[str, str, str]] = (), *, usage: tuple[int, int] | None = (10, 5)
) -> bytes:
    """A whole answer of chat completions: words, and calls as (id, name, arguments)."""
    words = text.split(" ")
    body = b"".join(
        chunk({"content": word + (" " if n + 1 < len(words) else "")}) for n, word in enumerate(words)
    )
    for index, (id_, name, arguments) in enumerate(calls):
        body += chunk({"tool_calls": [_fragment(index, id=id_, type="function", name=name, arguments="")]})
        body += chunk({"tool_calls": [_fragment(index, arguments=arguments)]})
    body += chunk({}, finish="tool_calls" if calls else "stop")
    if usage is not None:
        body += chunk(usage={"prompt_tokens": usage[0], "completion_tokens": usage[1]})
    return body + DONE


def _fragment(index: int, **named: str) -> dict[str, Any]:
    function = {name: named.pop(name) for name in ("name", "arguments") if name in named}
    return {"index": index, **named, "function": function}


def event(kind: str, **named: Any) -> bytes:
    """One event of messages."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **named})}\n\n".encode()


def messages_reply(text: str = "", calls: Sequence[tuple[str, str, str]] = ()) -> bytes:
    """A whole answer of messages."""
    usage = {"input_tokens": 10, "output_tokens": 1}
    body = event("message_start", message={"id": "m-1", "model": "scripted-1", "usage": usage})
    blocks: list[tuple[dict[str, Any], dict[str, Any]]] = []
    if text:
        blocks.append(({"type": "text", "text": ""}, {"type": "text_delta", "text": text}))
    blocks += [
        (
            {"type": "tool_use", "id": id_, "name": name, "input": {}},
            {"type": "input_json_delta", "partial_json": arguments},
        )
        for id_, name, arguments in calls
    ]
    for index, (start, delta) in enumerate(blocks):
        body += event("content_block_start", index=index, content_block=start)
        body += event("content_block_delta", index=index, delta=delta)
        body += event("content_block_stop", index=index)
    stop = {"stop_reason": "tool_use" if calls else "end_turn"}
    return body + event("message_delta", delta=stop, usage={"output_tokens": 5}) + event("message_stop")
