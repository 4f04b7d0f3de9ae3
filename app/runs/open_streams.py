"""The open streams of this process: whose they are, and how long they may last.

A stream is let in once and lasts for hours, so two things have to be watched while it is open.
One user must not take all places: each has a share (`USER_STREAM_MAX`). And a token that is
revoked or expires must not go on reading: all tokens with open streams are looked up together,
one query every 2 s, and at once when Redis says that one of them was revoked. That message is a
hint, as all of Redis is; only the database says what is valid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from app.core.errors import TooManyRequests
from app.core.periodic import Periodic
from app.core.telemetry import get_logger
from app.db.token_store import TokenStore
from app.stream.hub import StreamHub

_log = get_logger(__name__)

CHECK_EVERY_S = 2.0
_RETRY_AFTER_S = 2


@dataclass(slots=True, eq=False)
class Place:
    """One open stream. `token_id` is the token that it rests on; None: one that cannot be revoked."""

    user_id: str
    token_id: str | None
    end: Callable[[], None]
    """Called when the token is no longer valid; whoever reads sets it."""


class OpenStreams:
    """The places of a process. `checking` runs for as long as it serves."""

    def __init__(
        self, hub: StreamHub, tokens: TokenStore, now_us: Callable[[], int], *, channel: str, per_user: int
    ) -> None:
        self._hub = hub
        self._tokens = tokens
        self._now_us = now_us
        self._channel = channel
        self._per_user = per_user
        self._places: set[Place] = set()
        self._by_user: Counter[str] = Counter()
        self._listening = False
        self.checking = Periodic("open streams", CHECK_EVERY_S, self._check)

    def admit(self, user_id: str) -> None:
        """Raise `Unavailable` when this process is full or stops, `TooManyRequests` when the user is."""
        self._hub.admit()
        if self._by_user[user_id] >= self._per_user:
            raise TooManyRequests(
                f"You have {self._per_user} streams open on this server, which is all that one user may "
                "have (USER_STREAM_MAX); close some.",
                code="too_many_streams",
                retry_after_s=_RETRY_AFTER_S,
            )

    @contextmanager
    def place(self, user_id: str, token_id: str | None) -> Generator[Place]:
        """Take a place, or raise what `admit` does: nothing is awaited between the two."""
        self.admit(user_id)
        place = Place(user_id, token_id, lambda: None)
        self._places.add(place)
        self._by_user[user_id] += 1
        if token_id is not None:
            self._listen()
        try:
            yield place
        finally:
            self._places.discard(place)
            self._by_user[user_id] -= 1
            if not self._by_user[user_id]:
                del self._by_user[user_id]

    async def holds(self, token_id: str | None) -> bool:
        """Whether what rests on this token may still be done, asked now."""
        return token_id is None or token_id in await self._tokens.valid({token_id}, self._now_us())

    async def _check(self) -> None:
        """End streams whose token is no longer valid; they go on while the database is away."""
        if held := self._held():
            valid = await self._tokens.valid(held, self._now_us())
            for place in [place for place in self._places if place.token_id in held - valid]:
                _log.info("stream ended: its token is revoked or has expired", token_id=place.token_id)
                place.end()
        elif self._listening:
            self._hub.subscriptions.drop(self._channel)
            self._listening = False

    def _held(self) -> set[str]:
        return {place.token_id for place in self._places if place.token_id is not None}

    def _listen(self) -> None:
        if not self._listening:
            self._listening = True
            self._hub.subscriptions.add(self._channel, self._revoked, self.checking.soon)

    def _revoked(self, message: bytes) -> None:
        if message.decode("utf-8", "replace") in self._held():
            self.checking.soon()
