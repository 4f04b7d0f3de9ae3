"""`tailrun redis …`: a read-only redis-cli, for machines that have none. Replies look as redis-cli's."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any, cast

import typer

from app.commands.config import settings
from tailrun.ansi import harmless
from tailrun.commands.connection import CliError, serving

_PLAIN = frozenset({"INFO", "PING", "TYPE"})
"""Commands whose reply redis-cli prints without quotes."""

_ESCAPES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 13: "\\r", 34: '\\"', 92: "\\\\"}


def redis(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND…", help="Such as LLEN jobs:pending.")],
    *,
    redis_url: Annotated[
        str | None,
        typer.Option("--redis-url", envvar="REDIS_URL", help="Which Redis; by default that of `up`."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Print values bare, one a line.")] = False,
) -> None:
    """Ask Redis, read-only: LLEN jobs:pending, LRANGE jobs:dead 0 -1, SUBSCRIBE agent:logs:RUN_ID."""
    from app.core.errors import InvalidRequest, StorageError  # noqa: PLC0415 - `--help` needs no Redis
    from app.redis.address import BadAddress, RedisAddress  # noqa: PLC0415
    from app.redis.inspect import ServerSaid, ask  # noqa: PLC0415

    here = serving() if redis_url is None else None
    url = redis_url or (here.redis_url if here is not None else None)
    if url is None:
        raise CliError("No Redis: no `tailrun up` is running here. Name one with --redis-url or REDIS_URL")
    chosen = settings()

    async def show() -> None:
        async for reply in ask(RedisAddress.of(chosen.redis, url), command):
            text = _raw(reply) if raw else formatted(reply, plain=command[0].upper() in _PLAIN)
            print(harmless(text, colours=False) if sys.stdout.isatty() else text, flush=True)

    try:
        asyncio.run(show())
    except (InvalidRequest, BadAddress) as error:
        raise CliError(str(error), 2) from error
    except ServerSaid as error:
        print(harmless(f"(error) {error}", colours=False))
        raise typer.Exit(1) from error
    except StorageError as error:
        raise CliError(str(error)) from error
    except KeyboardInterrupt:
        sys.exit(0)


def formatted(reply: Any, *, plain: bool = False, indent: str = "") -> str:
    """Format a reply as redis-cli does on a terminal."""
    if reply is None:
        return "(nil)"
    if isinstance(reply, int):
        return f"(integer) {reply}"
    if isinstance(reply, bytes):
        return reply.decode(errors="replace").replace("\r\n", "\n").rstrip("\n") if plain else quoted(reply)
    if isinstance(reply, Exception):
        return f"(error) {reply}"
    items = cast("list[Any]", reply)
    if not items:
        return "(empty array)"
    width = len(str(len(items)))
    below = indent + " " * (width + 2)
    lines = [f"{n:>{width}}) {formatted(item, indent=below)}" for n, item in enumerate(items, 1)]
    return f"\n{indent}".join(lines)


def quoted(value: bytes) -> str:
    """Quote bytes as redis-cli does: what is not printable ASCII in hexadecimal."""
    return '"' + "".join(_ESCAPES.get(byte) or _shown(byte) for byte in value) + '"'


def _shown(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"  # noqa: PLR2004 - printable ASCII


def _raw(reply: Any) -> str:
    if isinstance(reply, bytes):
        return reply.decode(errors="replace")
    if isinstance(reply, list):
        return "\n".join(_raw(item) for item in cast("list[Any]", reply))
    return "" if reply is None else str(reply)
