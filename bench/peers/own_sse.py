"""FastAPI's own server-sent events: a queue per watcher, an event object per line and watcher."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent

queues: set[asyncio.Queue[str]] = set()


async def feed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand each line to each watcher."""
    while line := await reader.readline():
        text = line.decode().rstrip()
        for queue in queues:
            queue.put_nowait(text)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
    """Listen for lines while the app serves."""
    async with await asyncio.start_server(feed, "127.0.0.1", int(sys.argv[2]), limit=1 << 20):
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/stream", response_class=EventSourceResponse)
async def stream() -> AsyncIterable[ServerSentEvent]:
    """Follow."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    queues.add(queue)
    try:
        seq = 0
        while True:
            seq += 1
            yield ServerSentEvent(raw_data=await queue.get(), id=str(seq))
    finally:
        queues.discard(queue)


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", backlog=2048)
