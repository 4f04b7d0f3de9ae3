"""The log writer: the only writer of a run's stream while an attempt owns it.

It gives every event its `seq`, then sends it two ways that do not wait for each other: to
Redis (tail and channel; the first line at once, then every 20 ms or 64 lines) and to the
database (every 200 ms or 500 lines, fenced). While Redis is away lines go on to the
database; while the database is away the tail holds them, up to a bound, and then whoever
writes waits: the tool's pipe is left unread, and no line is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog

from app.core.errors import LostOwnership, StorageError
from app.core.events import SRC, Event, EventType, LineBatch, Written, with_usage
from app.core.models import Fence, Run, StepRecord
from app.core.telemetry import LOG_BYTES, LOG_COMMIT_SECONDS, LOG_GAPS, LOG_LINES
from app.db.run_store import Batch, Outcome, RunStore
from app.db.text import stored_bytes
from app.redis.publisher import Publisher, Tail
from app.stream.buffer import WriteBuffer
from app.stream.cap import LogCap
from app.stream.fenced_tail import FencedTail
from app.stream.masking import LineMasker, Masker
from tailrun.process.lines import Level, Line, Stream

COMMIT_EVERY_S = 0.2
COMMIT_EVENTS = 500
_RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0)

T = TypeVar("T")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """Bounds of a log writer: lines and seconds a publish waits for, bytes kept and held."""

    batch: int = 64
    linger_s: float = 0.02
    max_bytes: int = 10_000_000
    buffer_bytes: int = 8_000_000


class LogWriter:
    """Implements `app.agent.run_log.RunLog` for one attempt.

    `open` first, `finish` or `abandon` last. `on_cancel` is called when the row turns out to
    carry a cancel request, `on_lost` when another attempt owns the run.
    """

    def __init__(
        self,
        run: Run,
        fence: Fence,
        *,
        publisher: Publisher,
        tail: Tail,
        runs: RunStore,
        clock: Callable[[], int],
        policy: LogPolicy,
        masker: Masker,
        on_cancel: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._run, self._fence = run, fence
        self._redis = FencedTail(fence, publisher, tail, runs)
        self._runs = runs
        self._clock, self._policy = clock, policy
        self._on_cancel, self._on_lost = on_cancel, on_lost
        self._masker = masker
        self._masked_step: tuple[str | None, LineMasker] = (None, LineMasker(masker))
        self._cap = LogCap(policy.max_bytes, run.last_seq)
        self._left = WriteBuffer(run.last_seq)
        self._steps: dict[str, StepRecord] = {}
        self._planner: str | None = None
        self._usage: dict[str, Any] = {}
        self._flush = False
        self._hurry = asyncio.Event()
        self._batching = False
        self._closing = False
        self._ended = asyncio.Event()
        self._redis_away = False
        self._lost: LostOwnership | None = None
        self._added = asyncio.Event()
        self._moved = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # -- life ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Take the stream over: raise the fence, then save what the tail has and the database lacks.

        The log cap goes on from what is stored: one limit for all attempts of a run.
        The very first attempt has no predecessor, so there is nothing to save and the first
        append raises the fence; a later one waits here until Redis answers.
        """
        if self._fence.attempt > 1:
            await self._until_stored(self._rescue)
            kept = await self._until_stored(lambda: self._runs.kept(self._run.run_id))
            self._cap = LogCap.resumed(self._policy.max_bytes, kept)
        self._tasks = [
            asyncio.create_task(self._guarded(self._publish_loop())),
            asyncio.create_task(self._guarded(self._commit_loop())),
        ]

    async def finish(self, outcome: Outcome, kind: EventType, data: dict[str, Any]) -> int | None:
        """Commit the outcome and its event after all lines, then publish the event.

        The last lines are published with it, for a short run in one message; if the commit takes
        longer than lines wait in any case, they go ahead.
        Returns the time of a cancel request that the row carries, if any. Waits while the
        database is away; raises `LostOwnership`.
        """
        publishing, committing = self._tasks
        self._closing = True
        self._hurry.set()
        self._added.set()
        await committing
        outcome = replace(outcome, error=self.hide(outcome.error))
        last = self._event(kind, data=self.hide(data))
        self._left.add(last, publish=False)
        batch = self._next_batch(outcome)
        requested = await self._until_stored(lambda: self._commit(batch))
        self._ended.set()
        self._added.set()
        await publishing
        self._left.publish(last.encode())
        with contextlib.suppress(StorageError, LostOwnership):  # committed: hubs find it in the database
            while self._left.unpublished:
                await self._publish_chunk(ended=outcome.status.terminal)
        return requested

    async def abandon(self) -> None:
        """Stop writing; what is unwritten is dropped, for somebody else owns the run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def mask_with(self, masker: Masker) -> None:
        """Hide what `masker` knows from here on: a project's secrets come with its configuration."""
        self._masker, self._masked_step = masker, (None, LineMasker(masker))

    def hide(self, value: T) -> T:
        """Return a text or a record without secrets; whatever leaves by another way goes through here."""
        return self._masker.record(value)

    # -- what the agent calls -----------------------------------------------------------

    async def lines(self, lines: Sequence[Line], step: str | None) -> None:
        """Append output lines; waits while too much is unwritten."""
        self._check()
        masked = self._mask(lines, step)
        if any(line.cr or line.split for line in masked):
            for line in masked:
                self._enqueue(self._marked(line, step))
        else:
            now, run_id, attempt = self._clock(), self._run.run_id, self._fence.attempt
            for at in range(0, len(masked), COMMIT_EVENTS):
                part = masked[at : at + COMMIT_EVENTS]
                self._enqueue(LineBatch(self._left.seq + 1, now, run_id, attempt, step, part))
        LOG_BYTES.inc(stored_bytes("".join([line.content for line in lines])))
        for stream, count in Counter([line.stream for line in lines]).items():
            LOG_LINES.labels(stream).inc(count)
        await self._breathe()

    async def say(self, level: Level, content: str, step: str | None = None) -> None:
        """Append one line of Tailrun's own."""
        text = self._masker.text(content)
        self._enqueue(self._event(EventType.LOG, level=level, stream=Stream.SYSTEM, step=step, content=text))
        await self._breathe()

    async def event(
        self,
        kind: EventType,
        *,
        level: Level | None = None,
        step: str | None = None,
        content: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Append an event of another type."""
        text = None if content is None else self._masker.text(content)
        if kind is EventType.USAGE and data is not None:
            self._usage = with_usage(self._usage, data)
        if kind is EventType.GAP:  # what never got a number: it stands for nothing but itself
            LOG_GAPS.inc()
            data = {"from": self._left.seq + 1, "to": self._left.seq + 1, **(data or {})}
        self._enqueue(self._event(kind, level=level, step=step, content=text, data=self.hide(data or {})))
        await self._breathe()

    def _mask(self, lines: Sequence[Line], step: str | None) -> Sequence[Line]:
        """Hide secrets; a secret that runs over several lines is followed within one step."""
        if step != self._masked_step[0]:
            self._masked_step = (step, LineMasker(self._masker))
        return self._masked_step[1].lines(lines)

    async def save_step(self, record: StepRecord) -> None:
        """Put a step record into the next transaction."""
        self._check()
        args, result, error = self.hide(record.args), self.hide(record.result), self.hide(record.error)
        self._steps[record.step_id] = replace(record, args=args, result=result, error=error)

    def set_planner(self, planner: str) -> None:
        """Put the planner's name into the next transaction."""
        self._planner = planner

    async def source(self, step: str) -> str | None:
        """Return the `src` of the last line that is committed of a step."""
        return await self._until_stored(lambda: self._runs.last_source(self._run.run_id, step))

    async def flush(self) -> None:
        """Return once everything handed over so far is committed."""
        target = self._left.seq
        while self._left.committed < target or self._steps or self._batching:
            self._check()
            self._flush = True
            moved = self._moved
            self._added.set()
            self._hurry.set()
            await moved.wait()
        self._check()

    # -- buffers ------------------------------------------------------------------------

    def _event(self, kind: EventType, **fields: Any) -> Event:
        self._check()
        run_id, attempt = self._run.run_id, self._fence.attempt
        return Event(self._left.seq + 1, kind, self._clock(), run_id, attempt, **fields)

    def _marked(self, line: Line, step: str | None) -> Event:
        """Return the event of a line that may be marked `cr` or `split`."""
        marks: dict[str, Any] = {name: True for name in ("cr", "split") if getattr(line, name)}
        if line.src is not None:
            marks[SRC] = line.src
        kind, text = EventType.LOG, line.content
        return self._event(kind, level=line.level, stream=line.stream, step=step, content=text, data=marks)

    def _enqueue(self, written: Written) -> None:
        self._left.add(written)
        if self._left.uncommitted >= COMMIT_EVENTS:
            self._hurry.set()
        self._added.set()

    async def _breathe(self) -> None:
        """Wait while too much is held: this is the backpressure on the tool's pipe."""
        self._check()
        while self._too_much():
            moved = self._moved
            await moved.wait()
            self._check()

    def _too_much(self) -> bool:
        """Whether one of the two ways lags; hubs read from the database what Redis, away, cannot take."""
        limit = self._policy.buffer_bytes
        if self._redis_away:
            self._left.published_to(self._left.committed)
        return self._left.unpublished_bytes > limit // 4 or self._left.bytes > limit

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _guarded(self, loop: Coroutine[Any, Any, None]) -> None:
        try:
            await loop
        except LostOwnership as error:
            self._lost = error
            self._on_lost()
            self._wake()

    # -- to Redis -----------------------------------------------------------------------

    async def _publish_loop(self) -> None:
        clock = asyncio.get_running_loop().time
        last = 0.0
        while not self._ended.is_set():
            if not self._left.unpublished:
                await self._wait_added()
                continue
            wait_s = last + self._policy.linger_s - clock()
            if wait_s > 0 and self._left.unpublished < self._policy.batch:
                await _wait(self._ended, wait_s)
                continue
            last = clock()
            try:
                await self._publish_chunk()
            except StorageError as error:
                await self._redis_failed(error)

    async def _publish_chunk(self, *, ended: bool = False) -> None:
        """Publish what waits, or as much as one call takes; `ended`: behind it comes nothing more."""
        first, chunk = self._left.published + 1, self._left.chunk()
        ended = ended and len(chunk) == self._left.unpublished
        await self._redis.append(chunk, first, self._left.committed, ended=ended)
        self._redis_away = False
        self._left.published_to(first + len(chunk) - 1)
        self._wake()

    async def _redis_failed(self, error: StorageError) -> None:
        if not self._redis_away:
            self._redis_away = True
            log.warning("redis away, lines go to the database", run_id=self._run.run_id, error=str(error))
        self._left.published_to(self._left.committed)
        self._wake()
        await _wait(self._ended, _RETRY_S[2])

    # -- to the database ----------------------------------------------------------------

    async def _commit_loop(self) -> None:
        clock = asyncio.get_running_loop().time
        last = clock()
        while not self._closing:
            if not self._left.uncommitted and not (self._flush and self._steps):
                self._flush = False
                await self._wait_added()
                continue
            wait_s = last + COMMIT_EVERY_S - clock()
            if wait_s > 0 and self._left.uncommitted < COMMIT_EVENTS and not self._flush:
                self._hurry.clear()
                await _wait(self._hurry, wait_s)
                continue
            self._flush = False
            requested = await self._commit_next()
            last = clock()
            if requested is not None:
                self._on_cancel()

    async def _commit_next(self) -> int | None:
        batch = self._next_batch()
        self._batching = True
        try:
            return await self._until_stored(lambda: self._commit(batch))
        finally:
            self._batching = False
            self._wake()

    async def _wait_added(self) -> None:
        self._added.clear()
        await self._added.wait()

    def _next_batch(self, outcome: Outcome | None = None) -> Batch:
        events = self._left.batch(None if outcome else COMMIT_EVENTS * 4)
        steps, self._steps = list(self._steps.values()), {}
        planner, self._planner = self._planner, None
        cut = self._cap.add(events) if events else None
        return Batch(
            events=events,
            steps=steps,
            outcome=outcome,
            cut=cut.marked(self._fence, self._clock()) if cut else None,
            planner=planner,
            usage=self._usage or None if outcome else None,
        )

    async def _commit(self, batch: Batch) -> int | None:
        with LOG_COMMIT_SECONDS.time():
            committed = await self._runs.commit(self._fence, self._left.committed, batch)
        self._left.committed_batch(batch.events)
        return committed.cancel_requested_at

    async def _rescue(self) -> None:
        last = await self._redis.inherit(self._left.committed, self._clock())
        if last > self._left.committed:
            self._left.start(last)

    async def _until_stored(self, write: Callable[[], Awaitable[T]]) -> T:
        """Repeat `write` until the store takes it: nothing that was printed is dropped."""
        for attempt in range(1_000_000):
            try:
                return await write()
            except StorageError as error:
                if attempt == 0:
                    log.warning("store away, holding lines", run_id=self._run.run_id, error=str(error))
                await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
        raise StorageError("the database did not come back")


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):  # `wait_for` would make a task
            await event.wait()
