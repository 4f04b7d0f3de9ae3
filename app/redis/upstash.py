"""Redis commands over HTTPS: Upstash's REST API, for the API's short commands.

Offers the same methods as redis-py's client, with the same replies, so that queue, publisher
and tail don't know which of the two they use. What blocks or subscribes has no place here.
Nothing is sent twice: the library's own repeat after any failure is off, for a reply that was
lost may belong to a command that was carried out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Self

from redis.asyncio import Redis
from redis.commands.core import AsyncCoreCommands
from redis.exceptions import ConnectionError as ConnectionFailed
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as TimedOut

from app.redis.address import RestAddress

_TIMEOUT_S = 3.0
_SERVER_BUSY = ("LOADING", "BUSY", "MASTERDOWN", "READONLY")


class _Commands(AsyncCoreCommands):
    """redis-py's methods, which build a command and hand it to `execute_command`."""

    _is_async_client: Literal[True] = True
    _event_dispatcher: Any = None


class RestCommands(_Commands):
    """redis-py's commands, each one POST. Raises redis-py's errors; close it at the end."""

    def __init__(self, address: RestAddress) -> None:
        from upstash_redis.asyncio import Redis as Upstash  # noqa: PLC0415 - an optional extra

        self._upstash = Upstash(
            address.url, address.token, rest_retries=0, allow_telemetry=False, read_your_writes=True
        )
        self._callbacks: dict[Any, Callable[..., Any]] = dict(Redis(protocol=2).response_callbacks)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command and return its reply as redis-py would."""
        reply = await _sent(self._upstash.execute(_words(args)))
        return self._parsed(args, options, reply)

    def pipeline(self, transaction: bool = False) -> RestPipeline:
        """Return a pipeline: many commands, one POST. There are no transactions over REST here."""
        if transaction:
            raise ResponseError("no transactions over REST: use a script")
        return RestPipeline(self._send_many)

    async def aclose(self) -> None:
        """Close the HTTP client."""
        await self._upstash.close()

    async def _send_many(self, stack: list[_Command]) -> list[Any]:
        pipeline = self._upstash.pipeline()
        for args, _ in stack:
            pipeline.execute(_words(args))
        replies = await _sent(pipeline.exec())
        return [
            self._parsed(args, options, reply) for (args, options), reply in zip(stack, replies, strict=True)
        ]

    def _parsed(self, args: tuple[Any, ...], options: dict[str, Any], reply: Any) -> Any:
        options.pop("keys", None)
        parse = self._callbacks.get(args[0])
        value = _encoded(reply)
        return parse(value, **options) if parse is not None else value


_Command = tuple[tuple[Any, ...], dict[str, Any]]


class RestPipeline(_Commands):
    """Collects commands; `execute` sends them. The first error among the replies is raised."""

    def __init__(self, send: Callable[[list[_Command]], Awaitable[list[Any]]]) -> None:
        self._send = send
        self._stack: list[_Command] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._stack = []

    def execute_command(self, *args: Any, **options: Any) -> RestPipeline:
        """Take note of a command."""
        self._stack.append((args, options))
        return self

    async def execute(self) -> list[Any]:
        """Send what was collected."""
        stack, self._stack = self._stack, []
        return await self._send(stack) if stack else []


def _words(args: tuple[Any, ...]) -> list[str]:
    """Return a command as JSON can carry it.

    Its name in lower case: the library reshapes the replies of those in capitals.
    """
    name, *rest = args
    words = [*str(name).lower().split(), *rest]
    return [word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in words]


async def _sent(request: Awaitable[Any]) -> Any:
    """Await a reply for at most 3 s (the library itself has no limit)."""
    from upstash_redis.errors import UpstashError  # noqa: PLC0415 - an optional extra

    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await request
    except TimeoutError as error:
        raise TimedOut(f"the REST API did not answer within {_TIMEOUT_S:g} s") from error
    except UpstashError as error:
        raise _as_redis_error(str(error)) from error
    except Exception as error:  # the library passes on whatever its HTTP client and JSON parser raise
        raise ConnectionFailed(f"the REST API failed: {error or type(error).__name__}") from error


def _as_redis_error(said: str) -> Exception:
    if said.startswith("NOSCRIPT"):
        return NoScriptError(said)
    return ConnectionFailed(said) if said.startswith(_SERVER_BUSY) else ResponseError(said)


def _encoded(reply: Any) -> Any:
    """Return text as the bytes that the Redis protocol brings."""
    if isinstance(reply, str):
        return reply.encode()
    return [_encoded(item) for item in reply] if isinstance(reply, list) else reply
