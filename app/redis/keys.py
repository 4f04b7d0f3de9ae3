"""Every key and channel of Tailrun, each a function here and nowhere else.

A prefix in braces (`REDIS_PREFIX={tailrun}:`) puts all of them into one hash slot of a
Redis Cluster, which the scripts need.

How a Lua script is run: by its hash, and by its text where the server does not know it yet.

Scripts travel with the code that calls them (each is above its method, with its KEYS,
ARGV and output), so that two versions of Tailrun can share one Redis during an upgrade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError


@dataclass(frozen=True, slots=True)
class Keys:
    """The names that one deployment uses; `docs/architecture.md` says what each holds."""

    prefix: str = ""

    def pending(self) -> str:
        """LIST of entries that wait: LPUSH at the left, taken from the right."""
        return f"{self.prefix}jobs:pending"

    def processing(self, worker_id: str) -> str:
        """LIST of the entries that one worker holds."""
        return f"{self.prefix}jobs:processing:{worker_id}"

    def workers(self) -> str:
        """ZSET of worker id → lease deadline in milliseconds of Redis TIME."""
        return f"{self.prefix}jobs:workers"

    def delayed(self) -> str:
        """ZSET of entry → due time in milliseconds of Redis TIME."""
        return f"{self.prefix}jobs:delayed"

    def dead(self) -> str:
        """LIST of dead letters, newest first."""
        return f"{self.prefix}jobs:dead"

    def mark(self, run_id: str, push: int) -> str:
        """STRING that makes one push of a run happen once; expires after 60 s."""
        return f"{self.prefix}jobs:mark:{run_id}:{push}"

    def leader(self, role: str) -> str:
        """STRING: who does one kind of periodic work."""
        return f"{self.prefix}jobs:leader:{role}"

    def lack(self, worker_id: str) -> str:
        """STRING: why a worker claims nothing though it is alive; expires after 10 s."""
        return f"{self.prefix}jobs:lack:{worker_id}"

    def tick(self) -> str:
        """STRING: Redis TIME of the last tick, in milliseconds."""
        return f"{self.prefix}jobs:tick"

    def probe(self) -> str:
        """STRING that readiness writes, for a Redis that takes no writes answers too; expires after 10 s."""
        return f"{self.prefix}jobs:probe"

    def nonce(self, nonce: str) -> str:
        """STRING that shows two ways to Redis to lead to one server; expires after 10 s."""
        return f"{self.prefix}jobs:nonce:{nonce}"

    def logs(self, run_id: str) -> str:
        """Pub/sub channel of a run's events."""
        return f"{self.prefix}agent:logs:{run_id}"

    def tail(self, run_id: str) -> str:
        """STREAM of a run's recent events: field `e` holds some, id `<seq of the last of them>-0`."""
        return f"{self.prefix}agent:tail:{run_id}"

    def fence(self, run_id: str) -> str:
        """STRING: the attempt that may publish."""
        return f"{self.prefix}agent:fence:{run_id}"

    def control(self) -> str:
        """Pub/sub channel of signals to workers."""
        return f"{self.prefix}agent:control"

    def tokens(self) -> str:
        """Pub/sub channel of the ids of tokens that were revoked."""
        return f"{self.prefix}agent:tokens"


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
