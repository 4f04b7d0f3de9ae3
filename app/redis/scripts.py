"""How a Lua script is run: by its hash, and by its text where the server does not know it yet.

Scripts travel with the code that calls them (each stands over its method, with its KEYS,
ARGV and output), so that two versions of Tailrun can share one Redis during an upgrade.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

Value = str | bytes | int | float


class Script:
    """One Lua script; calling it is one round trip (two the first time a server sees it)."""

    def __init__(self, lua: str) -> None:
        self.lua = lua
        self.sha = sha1(lua.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, client: Redis, keys: Sequence[str], args: Sequence[Value]) -> Any:
        """Run it with `keys` and `args`; errors are the library's own (see `clients.guard`)."""
        try:
            return await client.evalsha(self.sha, len(keys), *keys, *args)  # pyright: ignore[reportArgumentType]
        except NoScriptError:
            return await client.eval(self.lua, len(keys), *keys, *args)  # pyright: ignore[reportArgumentType]
