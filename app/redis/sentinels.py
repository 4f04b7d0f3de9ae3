"""What the sentinels of one service are, in the order in which to ask them.

A reconnect always asks for the master: an address that is remembered is the one that failed.
The sentinel that answered last is asked first, so a dead one costs its time-out only once; one
that named a server which is no master (cut off from the others, it still knows the old one)
goes to the end. Shared by the connections of a pool.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.redis.address import RedisAddress, Server

ASK_TIMEOUT_S = 0.5


class Sentinels:
    """The sentinels of one address; asking them is the connections' business."""

    def __init__(self, address: RedisAddress) -> None:
        self.service = address.service or ""
        self._order = [
            replace(
                address,
                servers=(server,),
                service=None,
                db=0,
                username=address.sentinel_username,
                password=address.sentinel_password,
            )
            for server in address.servers
        ]

    @property
    def question(self) -> tuple[str, str, str]:
        """The command to send to a sentinel."""
        return "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service

    def in_order(self) -> list[RedisAddress]:
        """Return an address for each, the most promising first."""
        return list(self._order)

    def answered(self, sentinel: RedisAddress, reply: Any) -> Server | None:
        """Take a sentinel's answer: the master, or None if it does not know the service."""
        if not reply:
            return None
        self._order.remove(sentinel)
        self._order.insert(0, sentinel)
        return reply[0].decode(), int(reply[1])

    def misled(self) -> None:
        """Take note that the server which the first sentinel named is no master."""
        self._order.append(self._order.pop(0))

    def nobody(self, said: list[str]) -> str:
        """Say that no sentinel was of help, and what each said."""
        return f"no sentinel names the master of {self.service!r} ({'; '.join(said)})"


def is_demoted(error: Exception) -> bool:
    """Whether a server's error says that it is a replica (now): its connection is good for nothing.

    A script's write is refused with the word inside; UNBLOCKED ends a blocking pop.
    """
    text = str(error)
    return "READONLY" in text or "can't write against a read only" in text or text.startswith("UNBLOCKED")
