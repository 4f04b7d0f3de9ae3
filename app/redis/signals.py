"""Listening on `agent:control`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from app.redis.clients import RedisClients, guard


class Signals:
    """The worker's subscription to the control channel."""

    def __init__(self, clients: RedisClients) -> None:
        self._clients = clients
        self._channel = clients.keys.control()

    async def listen(self) -> AsyncIterator[bytes | None]:
        """Yield each message, and None on every (re)subscribe: what came before may be lost.

        Raises `RedisDown` when the connection breaks.
        """
        pubsub = self._clients.pubsub_connection()
        try:
            with guard():
                await pubsub.subscribe(self._channel)
                async for message in pubsub.listen():
                    yield message["data"] if message["type"] == "message" else None
        finally:
            await self._clients.release(pubsub)
