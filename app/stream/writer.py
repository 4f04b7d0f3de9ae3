"""The log writer: the only writer of a run's stream while an attempt owns it.

It masks lines, gives every event its `seq`, and queues it in two lanes that do not wait for each other: to
Redis (tail and channel; the first line at once, then every 20 ms or 64 lines) and to the database (every
200 ms or 500 lines, fenced). While Redis is away lines go on to the database; while the database is away the
tail holds them, up to a bound, and then the caller waits: the tool's pipe is left unread, and no line is
dropped.

A lane that ends by an error ends the attempt: every call that waits for it, and every later one, raises.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import structlog

from app.config import LogSettings
from app.core.errors import LogBroken, LostOwnership, StorageError
from app.core.events import SRC, Event, EventType, LineBatch, Written, with_usage
from app.core.models import Fence, Run, StepRecord
from app.core.telemetry import LOG_BYTES, LOG_COMMIT_SECONDS, LOG_GAPS, LOG_LINES
from app.db.row_codec import stored_bytes
from app.db.run_store import Batch, Outcome, RunStore
from app.redis.publisher import Publisher, Tail
from app.stream.cap import LogCap
from app.stream.lane import FencedTail, Lane
from app.stream.masking import LineMasker, Masker
from tailrun.process.lines import Level, Line, Stream

LINGER_S = 0.02
"""How long a line may wait for others to be published with; the first one never waits."""
COMMIT_EVERY_S = 0.2
COMMIT_EVENTS = 500
_MOST_COMMITTED = 4 * COMMIT_EVENTS
_PUBLISHED_EVENTS, _PUBLISHED_BYTES = 1024, 512_000
_RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0)
_REDIS_RETRY_S = 0.2

T = TypeVar("T")
log = structlog.get_logger()


class LogWriter:
    """Implements `app.agent.tools.program.RunLog` for one attempt.

    `open` first, `finish` or `abandon` last. `on_cancel` is called when the row turns out to
    carry a cancel request, `on_lost` when nothing can be written any more: `check` raises why.
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
        settings: LogSettings,
        masker: Masker,
        on_cancel: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._run, self._fence = run, fence
        self._redis = FencedTail(fence, publisher, tail, runs)
        self._runs = runs
        self._clock, self._settings = clock, settings
        self._on_cancel, self._on_lost = on_cancel, on_lost
        self._masker = masker
        self._masked_step: tuple[str | None, LineMasker] = (None, LineMasker(masker))
        self._cap = LogCap(settings.max_bytes, run.last_seq)
        self._publishing = Lane[list[bytes]](self._publish, every=LINGER_S, most=settings.batch, eager=True)
        self._committing = Lane[Written | StepRecord](
            self._commit_next, every=COMMIT_EVERY_S, most=COMMIT_EVENTS
        )
        self._start(run.last_seq)
        self._planner: str | None = None
        self._usage: dict[str, Any] = {}
        self._redis_away = False
        self._failure: LostOwnership | LogBroken | None = None
        self._moved = asyncio.Event()
        """Set, and cleared at once, whenever a lane has sent something or has failed."""
        self._tasks: list[asyncio.Task[None]] = []

    # -- life ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Take the stream over: raise the fence, then save what the tail has and the database lacks.

        The log cap continues from what is stored: one limit for all attempts of a run.
        The very first attempt has no predecessor, so there is nothing to save and the first
        append raises the fence; a later one waits here until Redis answers.
        """
        if self._fence.attempt > 1:
            await self.stored(self._rescue)
            kept = await self.stored(lambda: self._runs.kept(self._run.run_id))
            self._cap = LogCap.resumed(self._settings.max_bytes, kept)
        self._tasks = [
            asyncio.create_task(self._guarded(self._publishing)),
            asyncio.create_task(self._guarded(self._committing)),
        ]

    async def finish(self, outcome: Outcome, kind: EventType, data: dict[str, Any]) -> int | None:
        """Commit the outcome and its event after all lines, then publish the event.

        The last lines are published with it, for a short run in one message; if the commit takes
        longer than lines wait in any case, they go ahead.
        Returns the time of a cancel request that the row carries, if any. Waits while the
        database is away; raises `LostOwnership` and `LogBroken`.
        """
        self.check()
        publishing, committing = self._tasks
        self._committing.close()
        while not committing.done():
            await self._progress()
        outcome = replace(outcome, error=self.hide(outcome.error), result=self.hide(outcome.result))
        last = self._event(kind, data=self.hide(data))
        self._committing.add(last, last.seq, 0)
        batch, end = self._next_batch(outcome)
        requested = await self.stored(lambda: self._commit(batch, end))
        self._publishing.close()
        await publishing
        await self._publish_end(last, ended=outcome.status.terminal)
        return requested

    async def abandon(self) -> None:
        """Stop writing; what is not written yet is dropped, for another attempt will own the run."""
        if self._failure is None:
            self._failure = LostOwnership("this attempt has ended")
        self._wake()
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

    async def lines(
        self, lines: Sequence[Line], step: str | None, *, call: int | None = None
    ) -> Sequence[Line]:
        """Append output lines, or words of the model's call `call`; waits while too much is unwritten."""
        self.check()
        masked = self._mask(lines, step)
        if call is not None or any(line.cr or line.split for line in masked):
            for line in masked:
                self._enqueue(self._marked(line, step, call))
        else:
            now, run_id, attempt = self._clock(), self._run.run_id, self._fence.attempt
            for at in range(0, len(masked), COMMIT_EVENTS):
                part = masked[at : at + COMMIT_EVENTS]
                self._enqueue(LineBatch(self._seq + 1, now, run_id, attempt, step, part))
        LOG_BYTES.inc(stored_bytes("".join([line.content for line in lines])))
        for stream, count in Counter([line.stream for line in lines]).items():
            LOG_LINES.labels(stream).inc(count)
        await self._room()
        return masked

    async def say(self, level: Level, content: str, step: str | None = None) -> None:
        """Append one line of Tailrun's own."""
        text, stream = self._masker.text(content), Stream.SYSTEM
        self._enqueue(self._event(EventType.LOG, level=level, stream=stream, step=step, content=text))
        await self._room()

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
        if kind is EventType.GAP:  # the lines that are lost have no numbers: the range is the event itself
            LOG_GAPS.inc()
            data = {"from": self._seq + 1, "to": self._seq + 1, **(data or {})}
        self._enqueue(self._event(kind, level=level, step=step, content=text, data=self.hide(data or {})))
        await self._room()

    def _mask(self, lines: Sequence[Line], step: str | None) -> Sequence[Line]:
        """Hide secrets; a secret that runs over several lines is followed within one step."""
        if step != self._masked_step[0]:
            self._masked_step = (step, LineMasker(self._masker))
        return self._masked_step[1].lines(lines)

    async def save_step(self, record: StepRecord) -> None:
        """Put a step record into a transaction with what was handed over before it, or a later one."""
        self.check()
        self._committing.add(self.hidden(record), self._seq, 0)

    def hidden(self, record: StepRecord) -> StepRecord:
        """Return a step's record without secrets."""
        names = ("args", "result", "error", "for_model")
        return replace(record, **{name: self.hide(getattr(record, name)) for name in names})

    def set_planner(self, planner: str) -> None:
        """Put the planner's name into the next transaction."""
        self._planner = planner

    async def source(self, step: str) -> str | None:
        """Return the `src` of the last line that is committed of a step."""
        return await self.stored(lambda: self._runs.last_source(self._run.run_id, step))

    async def flush(self) -> None:
        """Return once everything handed over so far is committed."""
        queue = self._committing.queue
        last = queue.added
        self.check()
        while queue.removed < last:
            self._committing.hurry()
            await self._progress()

    def check(self) -> None:
        """Raise why nothing can be written any more, if so."""
        if self._failure is not None:
            raise self._failure

    # -- into the lanes -----------------------------------------------------------------

    def _start(self, seq: int) -> None:
        self._seq = seq
        self._publishing.queue.start(seq)
        self._committing.queue.start(seq)

    def _event(self, kind: EventType, **fields: Any) -> Event:
        self.check()
        run_id, attempt = self._run.run_id, self._fence.attempt
        return Event(self._seq + 1, kind, self._clock(), run_id, attempt, **fields)

    def _marked(self, line: Line, step: str | None, call: int | None) -> Event:
        """Return the event of a line that may be marked `cr` or `split`, or be of a call of a model."""
        marks: dict[str, Any] = {name: True for name in ("cr", "split") if getattr(line, name)}
        if call is not None:
            marks["call"] = call
        if line.src is not None:
            marks[SRC] = line.src
        kind, text = EventType.LOG, line.content
        return self._event(kind, level=line.level, stream=line.stream, step=step, content=text, data=marks)

    def _enqueue(self, written: Written) -> None:
        raws = written.encoded()
        self._seq, size = written.seq, sum(map(len, raws))
        self._publishing.add(raws, self._seq, size)
        self._committing.add(written, self._seq, size)

    async def _room(self) -> None:
        """Wait while too much is queued: this is the backpressure on the tool's pipe."""
        self.check()
        while not self._has_room():
            await self._progress()

    def _has_room(self) -> bool:
        """Whether no lane lags too far; hubs read from the database what Redis, away, cannot take."""
        limit = self._settings.buffer_bytes
        published, committed = self._publishing.queue, self._committing.queue
        if self._redis_away:
            published.skip(committed.sent)
        return published.bytes <= limit // 4 and committed.bytes <= limit

    # -- progress and failure -----------------------------------------------------------

    async def _progress(self) -> None:
        """Wait until a lane has sent something; raises once one has failed."""
        await self._moved.wait()
        self.check()

    def _wake(self) -> None:
        self._moved.set()
        self._moved.clear()

    async def _guarded(self, lane: Lane[Any]) -> None:
        """Run a lane. Whatever ends it early ends the attempt, or who waits for it would never return."""
        try:
            await lane.run()
        except LostOwnership as error:
            self._fail(error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._broke(error)  # not this task was cancelled, but something that it waited for
        except Exception as error:  # noqa: BLE001 - it is logged, and raised by whatever is called next
            self._broke(error)
        finally:
            self._wake()

    def _broke(self, error: BaseException) -> None:
        run_id, attempt = self._run.run_id, self._fence.attempt
        log.error("log writer broke, the attempt ends", run_id=run_id, attempt=attempt, exc_info=error)
        broken = LogBroken(f"{run_id}: its log cannot be written ({type(error).__name__}: see the log)")
        broken.__cause__ = error
        self._fail(broken)

    def _fail(self, error: LostOwnership | LogBroken) -> None:
        if self._failure is None:
            self._failure = error
        self._on_lost()

    # -- to Redis -----------------------------------------------------------------------

    async def _publish(self) -> None:
        """Publish the head of the queue; while Redis is away, leave to the database what that has."""
        try:
            await self._append()
        except StorageError as error:
            if not self._redis_away:
                self._redis_away = True
                log.warning("redis away, lines go to the database", run_id=self._run.run_id, error=str(error))
            self._publishing.queue.skip(self._committing.queue.sent)
            self._wake()
            await asyncio.sleep(_REDIS_RETRY_S)

    async def _append(self, *, ended: bool = False) -> None:
        """Publish as much as one call takes; `ended`: nothing follows what is queued."""
        queue = self._publishing.queue
        items, end = queue.head(_PUBLISHED_EVENTS, _PUBLISHED_BYTES)
        raws = [raw for item in items for raw in item]
        ended = ended and len(items) == len(queue)
        await self._redis.append(raws, queue.sent + 1, self._committing.queue.sent, ended=ended)
        self._redis_away = False
        queue.remove(end)
        self._wake()

    async def _publish_end(self, last: Event, *, ended: bool) -> None:
        """Publish what is left with the run's last event, once; it is committed, so hubs find it anyway."""
        self._publishing.add([last.encode()], last.seq, 0)
        try:
            while self._failure is None and self._publishing.queue:
                await self._append(ended=ended)
        except (StorageError, LostOwnership):
            return
        except Exception:
            log.exception("end not published, hubs read it from the database", run_id=self._run.run_id)

    # -- to the database ----------------------------------------------------------------

    async def _commit_next(self) -> None:
        batch, end = self._next_batch()
        requested = await self.stored(lambda: self._commit(batch, end))
        self._wake()
        if requested is not None:
            self._on_cancel()

    def _next_batch(self, outcome: Outcome | None = None) -> tuple[Batch, int]:
        """Return what the next transaction writes, and what to `remove` from the queue after it."""
        queue = self._committing.queue
        items, end = queue.head() if outcome else queue.head(_MOST_COMMITTED)
        events = [item for item in items if not isinstance(item, StepRecord)]
        steps = {item.step_id: item for item in items if isinstance(item, StepRecord)}
        planner, self._planner = self._planner, None
        cut = self._cap.add(events) if events else None
        batch = Batch(
            events=events,
            steps=list(steps.values()),
            outcome=outcome,
            cut=cut.marked(self._fence, self._clock()) if cut else None,
            planner=planner,
            usage=self._usage or None if outcome else None,
        )
        return batch, end

    async def _commit(self, batch: Batch, end: int) -> int | None:
        queue = self._committing.queue
        with LOG_COMMIT_SECONDS.time():
            committed = await self._runs.commit(self._fence, queue.sent, batch)
        queue.remove(end)
        return committed.cancel_requested_at

    async def _rescue(self) -> None:
        last = await self._redis.inherit(self._seq, self._clock())
        if last > self._seq:
            self._start(last)

    async def stored(self, write: Callable[[], Awaitable[T]]) -> T:
        """Repeat `write` until the store takes it: nothing that was printed, or paid for, is dropped."""
        tries = 0
        while True:
            try:
                return await write()
            except StorageError as error:
                if tries == 0:
                    log.warning("store away, holding lines", run_id=self._run.run_id, error=str(error))
                await asyncio.sleep(_RETRY_S[min(tries, len(_RETRY_S) - 1)])
                tries += 1
