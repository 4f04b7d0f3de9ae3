"""As much of HTTP/1.1 as an API server needs, by hand: a test must be able to cut it anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

import orjson

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "AlreadyExists",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}


@dataclass
class Request:
    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict:
        return orjson.loads(self.body)


@dataclass
class Answer:
    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Bytes of the body after which the connection breaks; 0: before the answer's first byte."""


def refusal(status: int, message: str, **headers: str) -> Answer:
    body = {"kind": "Status", "code": status, "reason": _REASONS.get(status, ""), "message": message}
    return Answer(
        status, orjson.dumps(body), {name.replace("_", "-"): value for name, value in headers.items()}
    )


def found(body: object, status: int = 200) -> Answer:
    return Answer(status, orjson.dumps(body))


Handler = Callable[[Request], Awaitable[Answer]]


async def serve(handler: Handler, *, ssl: ssl.SSLContext | None = None) -> asyncio.Server:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read(reader)) is not None:
                await _write(writer, await handler(request))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, _Cut):
            writer.transport.abort()
        finally:
            with contextlib.suppress(ConnectionError, RuntimeError):
                writer.close()

    return await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 24, ssl=ssl)


class _Cut(Exception):
    pass


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *rest = head.decode().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    parts = urlsplit(target)
    return Request(method, parts.path, dict(parse_qsl(parts.query)), headers, body)


async def _write(writer: asyncio.StreamWriter, answer: Answer) -> None:
    if answer.cut_after == 0:
        raise _Cut
    headers = {"Content-Type": "application/json", **answer.headers}
    if isinstance(answer.body, bytes):
        headers["Content-Length"] = str(len(answer.body))
        body = answer.body if answer.cut_after is None else answer.body[: answer.cut_after]
        writer.write(_head(answer.status, headers) + body)
        await writer.drain()
        if answer.cut_after is not None:
            raise _Cut
        return
    headers["Transfer-Encoding"] = "chunked"
    writer.write(_head(answer.status, headers))
    await _write_chunks(writer, answer.body, answer.cut_after)


async def _write_chunks(
    writer: asyncio.StreamWriter, chunks: AsyncIterator[bytes], cut_after: int | None
) -> None:
    sent = 0
    async with contextlib.aclosing(chunks) as body:
        async for chunk in body:
            piece = chunk if cut_after is None else chunk[: cut_after - sent]
            if piece:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
            sent += len(piece)
            if cut_after is not None and sent >= cut_after:
                raise _Cut
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode()
