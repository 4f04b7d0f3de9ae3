"""The one pub/sub connection of a process, shared by all runs that have readers.

Owns what is subscribed and brings it back after a loss, at once and then with backoff. It
works on the bare connection of redis-py, not on its `PubSub`, which reconnects silently.
Pub/sub promises nothing: each confirmation of a channel, the first and every later one,
tells the listener that messages may have been missed before it.

Listening on `agent:control`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable
from typing import Any

import redis

from app.core.telemetry import PERIODIC_ERRORS, get_logger
from app.redis.clients import RedisClients, guard

_log = get_logger(__name__)

OnMessage = Callable[[bytes], None]
OnConfirmed = Callable[[], None]
_Listener = tuple[OnMessage, OnConfirmed]

_BACKOFF_S = (0.05, 2.0)
_CHECK_EVERY_S = 2.0
_DEAD_AFTER_S = 6.0
_ERRORS = (redis.RedisError, OSError, TimeoutError)


class NoSubscriptions:
    """Used where there is no pub/sub: its callers have to poll."""

    connected = False

    def add(self, channel: str, on_message: OnMessage, on_confirmed: OnConfirmed) -> None:
        """Do nothing; the hub compares more often instead."""

    def drop(self, channel: str) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


class Subscriptions:
    """Channels of one process: `add`, `drop`; the listeners are called in the event loop."""

    def __init__(self, clients: RedisClients) -> None:
        self._clients = clients
        self._pool: Any = None
        self._connection: Any = None
        self._wanted: dict[bytes, _Listener] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._heard_at = 0.0
        self._told_up = True

    @property
    def connected(self) -> bool:
        """Whether the connection is open, as far as is known."""
        return self._connection is not None

    def add(self, channel: str, on_message: OnMessage, on_confirmed: OnConfirmed) -> None:
        """Subscribe; `on_confirmed` is called once it is in force, and again after each reconnect."""
        self._wanted[channel.encode()] = (on_message, on_confirmed)
        self._start()

    def drop(self, channel: str) -> None:
        """Unsubscribe; the connection is closed with the last channel."""
        self._wanted.pop(channel.encode(), None)
        self._changed.set()

    async def close(self) -> None:
        """Close the connection and stop."""
        self._wanted.clear()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def _start(self) -> None:
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="subscriptions")

    async def _run(self) -> None:
        """Keep a connection while a channel is wanted."""
        backoff = _BACKOFF_S[0]
        while self._wanted:
            started = asyncio.get_running_loop().time()
            try:
                await self._session()
            except _ERRORS as error:
                if asyncio.get_running_loop().time() - started > _DEAD_AFTER_S:
                    backoff = _BACKOFF_S[0]
                say = _log.warning if self._told_up else _log.debug
                say("subscription lost, trying again", error=str(error))
                self._told_up = False
            except Exception:  # noqa: BLE001 - logged and counted; the task continues
                PERIODIC_ERRORS.labels("subscriptions").inc()
                _log.exception("subscription broke, trying again")
            else:
                backoff = _BACKOFF_S[0]
                continue
            await asyncio.sleep(backoff * random.uniform(0.5, 1))  # noqa: S311 - spreads reconnects
            backoff = min(backoff * 2, _BACKOFF_S[1])

    async def _session(self) -> None:
        """Connect, subscribe to all that is wanted and read until nothing is, or until an error."""
        if self._pool is None:
            self._pool = self._clients.pubsub_connection().connection_pool
        connection = await self._pool.get_connection()
        self._connection = connection
        reader = writer = None
        try:
            self._heard_at = asyncio.get_running_loop().time()
            writer = asyncio.ensure_future(self._write(connection))
            reader = asyncio.ensure_future(self._read(connection))
            done, _ = await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._connection = None
            for task in (reader, writer):
                if task is not None:
                    task.cancel()
            await asyncio.gather(*(task for task in (reader, writer) if task), return_exceptions=True)
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)

    async def _write(self, connection: Any) -> None:
        """Bring what is subscribed in line with what is wanted; ends when nothing is."""
        subscribed: set[bytes] = set()
        while True:
            self._changed.clear()
            wanted = set(self._wanted)
            for command, channels in (
                ("SUBSCRIBE", wanted - subscribed),
                ("UNSUBSCRIBE", subscribed - wanted),
            ):
                if channels:
                    await connection.send_command(command, *channels, check_health=False)
            subscribed = wanted
            if not subscribed:
                return
            if not self._changed.is_set():
                await self._wait_or_check(connection)

    async def _wait_or_check(self, connection: Any) -> None:
        """Wait for a change; meanwhile ping, for a peer that vanished says nothing."""
        try:
            async with asyncio.timeout(_CHECK_EVERY_S):
                await self._changed.wait()
        except TimeoutError:
            if asyncio.get_running_loop().time() - self._heard_at > _DEAD_AFTER_S:
                raise TimeoutError("Redis is silent") from None
            await connection.send_command("PING", check_health=False)

    async def _read(self, connection: Any) -> None:
        """Hand messages and confirmations to their listeners."""
        clock = asyncio.get_running_loop().time
        while True:
            reply = await connection.read_response(disconnect_on_error=False)
            self._heard_at = clock()
            kind = reply[0]
            listener = self._wanted.get(reply[1])
            if listener is None:
                continue
            if kind == b"message":
                listener[0](reply[2])
            elif kind == b"subscribe":
                listener[1]()
                if not self._told_up:
                    self._told_up = True
                    _log.info("subscribed again")


class Signals:
    """The worker's subscription to the control channel."""

    def __init__(self, clients: RedisClients) -> None:
        self._clients = clients
        self._channel = clients.keys.control()

    async def listen(self) -> AsyncGenerator[bytes | None]:
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
