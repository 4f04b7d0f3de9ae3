"""A load generator's HTTP client: as little work a byte as can be, so that the server is measured."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from stack import Stack

BUFFER = 1 << 20


class Wire:
    """One kept-alive connection; one request at a time."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send one request and return its JSON; any status but 2xx ends the benchmark."""
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(
                self._stack.host, self._stack.port, limit=BUFFER
            )
        payload = json.dumps(body).encode() if body is not None else b""
        self._writer.write(_head(self._stack, method, path, len(payload)) + payload)
        status, length = await _answer_head(self._reader)
        answer = await self._reader.readexactly(length)
        if not 200 <= status < 300:
            raise SystemExit(f"{method} {path} answered {status}: {answer.decode(errors='replace')}")
        return json.loads(answer) if answer else None

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@asynccontextmanager
async def watch(stack: Stack, run_id: str) -> AsyncIterator[asyncio.StreamReader]:
    """Open a run's SSE stream; the reader stands at its first byte. HTTP/1.0 has no chunks to undo."""
    reader, writer = await asyncio.open_connection(stack.host, stack.port, limit=BUFFER)
    try:
        writer.write(_head(stack, "GET", f"/v1/runs/{run_id}/stream", 0, "1.0"))
        status, _ = await _answer_head(reader)
        if status != 200:
            raise SystemExit(f"the stream answered {status}: {await reader.read(1000)!r}")
        yield reader
    finally:
        writer.close()


async def read_until(reader: asyncio.StreamReader, word: bytes) -> None:
    """Read a stream until `word` has come."""
    seen = b""
    while word not in seen:
        piece = await reader.read(65536)
        if not piece:
            raise SystemExit(f"the stream ended before {word!r} came")
        seen = seen[-len(word) :] + piece


def _head(stack: Stack, method: str, path: str, length: int, version: str = "1.1") -> bytes:
    return (
        f"{method} {path} HTTP/{version}\r\nHost: {stack.host}:{stack.port}\r\n"
        f"Authorization: Bearer {stack.token}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


async def _answer_head(reader: asyncio.StreamReader) -> tuple[int, int]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    lines = head.split("\r\n")
    lengths = [int(line.partition(":")[2]) for line in lines if line.startswith("content-length:")]
    return int(lines[0].split()[1]), lengths[0] if lengths else 0
