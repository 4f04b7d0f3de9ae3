"""What one writes first: sse-starlette, and a Redis subscription of its own for every watcher."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from redis.asyncio import Redis
from sse_starlette.sse import EventSourceResponse

app = FastAPI()
redis: Any = Redis(port=int(sys.argv[2]), max_connections=10_000)


@app.get("/stream")
async def stream() -> EventSourceResponse:
    """Follow."""

    async def events() -> AsyncIterator[dict[str, Any]]:
        async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe("lines")
            seq = 0
            async for message in pubsub.listen():
                seq += 1
                yield {"id": str(seq), "data": message["data"].decode()}

    return EventSourceResponse(events())


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", backlog=2048)
