"""The dead letters: entries that were given up, with the reason; read, and dropped once seen to.

A letter is addressed by its run, or by an id made from its content, which every letter has:
also those of entries that were none. Workers put them there (`claims`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson

from app.redis.clients import RedisClients, guard

_PAGE = 500
_ID_CHARS = 20


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter: its id, its raw text, and what it says (`reason`, `error`, `entry`, `raw`, `at`)."""

    letter_id: str
    raw: bytes
    body: dict[str, Any]

    @property
    def run_id(self) -> str | None:
        """The run that it names; anybody may have written it, so ask the row."""
        run_id = self.body.get("run_id")
        return run_id if isinstance(run_id, str) else None

    def is_named(self, name: str) -> bool:
        """Whether `name` is the letter's id or its run's."""
        return name in {self.letter_id, self.run_id}


class DeadLetters:
    """`jobs:dead`, newest first. Every method raises `RedisDown` while Redis is away."""

    def __init__(self, clients: RedisClients) -> None:
        self._redis: Any = clients.commands
        self._key = clients.keys.dead()

    async def page(self, offset: int, limit: int) -> list[Letter]:
        """Return up to `limit` letters from the `offset`-th on."""
        with guard():
            raws = await self._redis.lrange(self._key, offset, offset + limit - 1)
        return [read_letter(raw) for raw in raws]

    async def all(self) -> AsyncIterator[Letter]:
        """Yield every letter; one that is added or dropped meanwhile may come twice or not at all."""
        offset = 0
        while letters := await self.page(offset, _PAGE):
            for letter in letters:
                yield letter
            offset += len(letters)

    async def named(self, name: str) -> list[Letter]:
        """Return the letters of a run, or the one with this id."""
        return [letter async for letter in self.all() if letter.is_named(name)]

    async def remove(self, letters: Sequence[Letter]) -> int:
        """Drop letters; return how many were still there."""
        if not letters:
            return 0
        with guard():
            async with self._redis.pipeline(transaction=False) as pipe:
                for letter in letters:
                    pipe.lrem(self._key, 0, letter.raw)
                return sum(await pipe.execute())


def read_letter(raw: bytes) -> Letter:
    """Read a letter; one that is unreadable itself is shown as such."""
    letter_id = sha256(raw).hexdigest()[:_ID_CHARS]
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        body = {"run_id": None, "reason": "unreadable", "raw": raw.decode(errors="replace")}
    return Letter(letter_id, raw, body)
