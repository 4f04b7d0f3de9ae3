"""The read side of all runs in one process: who watches what, over one subscription a run.

Subscribe → history (tail, then database) → drop what was seen → on a hole, fetch it. The hub
owns the feeds and makes sure that none hangs: every second, feeds that were silent are
compared with `runs.last_seq` and with the tail's top, each on its own clock, so that neither
a frozen Redis nor a locked database stops the other. Nothing is left when the last reader goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from app.core.errors import Unavailable
from app.core.models import Run
from app.core.periodic import Periodic
from app.core.telemetry import STREAM_LIMIT, WATCHERS
from app.redis.clients import RedisClients
from app.redis.publisher import Tail
from app.redis.subscriber import NoSubscriptions, Subscriptions
from app.stream.feed import Encode, FeedLimits, RunFeed
from app.stream.history import Backfill, Heads, History
from app.stream.reader import LiveReader, Reader, Replay

__all__ = ["Heads", "History", "StreamHub"]

_COMPARE_EVERY_S = 1.0
_POLL_EVERY_S = 0.5
"""The same where there is no pub/sub, for every feed: the comparison brings the lines then."""
_KEEP_FEED_S = 2.0
_RETRY_AFTER_S = 2
_LINGER_S = 0.02


class StreamHub:
    """Gives out readers of runs' streams. Ends all of them when `draining` is set."""

    def __init__(
        self,
        clients: RedisClients,
        tail: Tail,
        history: History,
        heads: Heads,
        *,
        draining: asyncio.Event,
        limit: int = 2_000,
        feed_limits: FeedLimits | None = None,
    ) -> None:
        self._keys = clients.keys
        self.subscriptions = Subscriptions(clients) if clients.subscribes else NoSubscriptions()
        """The connection that all of this process listens on, for other channels too."""
        every_s = _COMPARE_EVERY_S if clients.subscribes else _POLL_EVERY_S
        self._comparing = (
            Periodic("compare with runs", every_s, self._compare_database, again_most_s=every_s),
            Periodic("compare with tails", every_s, self._compare_tails, again_most_s=every_s),
        )
        self._silent_s = _COMPARE_EVERY_S if clients.subscribes else 0.0
        self._backfill = Backfill(tail, history, heads)
        self._limits = feed_limits or FeedLimits(linger_s=_LINGER_S)
        self._limit = limit
        STREAM_LIMIT.set(limit)
        self._draining = draining
        self._feeds: dict[str, RunFeed] = {}
        self._readers: set[Reader] = set()
        self._ending: asyncio.Task[None] | None = None

    @property
    def readers(self) -> int:
        """How many streams are open."""
        return len(self._readers)

    @property
    def feeds(self) -> int:
        """How many runs are subscribed."""
        return len(self._feeds)

    def admit(self) -> None:
        """Raise `Unavailable` when this process has all the streams that it takes."""
        if self._draining.is_set():
            raise Unavailable("This server is stopping; connect again.", retry_after_s=_RETRY_AFTER_S)
        if len(self._readers) >= self._limit:
            raise Unavailable(
                f"All {self._limit} streams of this server are taken (STREAM_LIMIT); try again.",
                retry_after_s=_RETRY_AFTER_S,
            )

    @contextmanager
    def follow(self, run_id: str, after: int, encode: Encode) -> Generator[Reader]:
        """Open a reader that follows the run from `after` to its `end`."""
        self._start()
        feed = self._feed(run_id)
        feed.readers += 1
        reader = LiveReader(feed, self._backfill, after, encode)
        try:
            with self._counted(reader):
                yield reader
        finally:
            feed.readers -= 1
            if not feed.readers:
                asyncio.get_running_loop().call_later(_KEEP_FEED_S, self._let_go, feed)

    @contextmanager
    def replay(self, run_id: str, after: int, until: int, encode: Encode) -> Generator[Reader]:
        """Open a reader of what is between `after` and `until`."""
        self._start()
        with self._counted(Replay(run_id, self._backfill, after, until, encode)) as reader:
            yield reader

    async def top(self, run_id: str) -> int:
        """Return the highest seq that exists now; `StorageError` when neither store answers."""
        return await self._backfill.top(run_id)

    async def within(self, run: Run, after: int) -> int:
        """Return `after`, or the highest seq of a run if `after` is ahead of it: then it was another run's.

        Such a reader would wait for a seq that never comes, and miss the run's end. May raise `StorageError`.
        """
        return after if after <= run.last_seq else min(after, await self.top(run.run_id))

    async def close(self) -> None:
        """End every stream and close the subscription."""
        for reader in list(self._readers):
            reader.close()
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        for work in self._comparing:
            await work.stop()
        for feed in self._feeds.values():
            feed.close()
        self._feeds.clear()
        await self.subscriptions.close()

    @contextmanager
    def _counted(self, reader: Reader) -> Generator[Reader]:
        self._readers.add(reader)
        WATCHERS.set(len(self._readers))
        if self._draining.is_set():
            reader.drain()
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            WATCHERS.set(len(self._readers))

    def _feed(self, run_id: str) -> RunFeed:
        """Return the run's feed; two first readers share one, for nothing is awaited here."""
        feed = self._feeds.get(run_id)
        if feed is None:
            feed = self._feeds[run_id] = RunFeed(run_id, self._backfill, self._limits)
            self.subscriptions.add(self._keys.logs(run_id), feed.message, feed.confirmed)
            feed.catch_up()
        return feed

    def _let_go(self, feed: RunFeed) -> None:
        if not feed.readers and self._feeds.get(feed.run_id) is feed:
            del self._feeds[feed.run_id]
            self.subscriptions.drop(self._keys.logs(feed.run_id))
            feed.close()

    def _start(self) -> None:
        if self._ending is None:
            self._ending = asyncio.create_task(self._drain(), name="end streams when draining")
            for work in self._comparing:
                work.start()

    async def _drain(self) -> None:
        await self._draining.wait()
        for reader in list(self._readers):
            reader.drain()

    async def _compare_database(self) -> None:
        silent = self._silent()
        heads = await self._backfill.heads(silent) if silent else {}
        for run_id, (head, status) in heads.items():
            if run_id in self._feeds:
                self._feeds[run_id].compare(head, status)

    async def _compare_tails(self) -> None:
        silent = self._silent()
        tops = await self._backfill.tops(silent) if silent else {}
        for run_id, top in tops.items():
            if run_id in self._feeds:
                self._feeds[run_id].compare(top)

    def _silent(self) -> list[str]:
        return [run_id for run_id, feed in self._feeds.items() if feed.silent_for(self._silent_s)]
