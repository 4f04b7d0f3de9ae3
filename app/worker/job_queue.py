"""The worker's end of the queue: from an entry in Redis to a run that is ours, and back.

Claims entries, asks the database whose each run is (many in one transaction), and lets go
of them when the attempt has ended: ack, retry later, dead letter, or give back. Order is
what keeps the promises: the row first, then Redis; so that a crash in between leaves an
entry that the next claimer drops.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

import structlog

from app.core.errors import StorageError
from app.core.models import Job, Run, RunStatus
from app.core.telemetry import DEAD_LETTERS, REDELIVERIES
from app.db.run_store import RunStore
from app.redis.claims import Claim, Claims
from app.redis.publisher import Publisher
from app.redis.queue import Queue, delayed_job, run_id_of
from app.runs.take_over import Verdict, alone_from, judge, redelivered
from app.worker.attempts import Attempt, InFlight
from tailrun.process.errors import ErrorCode, RunFailure

log = structlog.get_logger()


class JobQueue:
    """Claims runs for one worker and releases them again."""

    def __init__(
        self,
        claims: Claims,
        queue: Queue,
        publisher: Publisher,
        runs: RunStore,
        in_flight: InFlight,
        *,
        worker_id: str,
        max_redeliveries: int,
    ) -> None:
        self._claims, self._queue, self._publisher = claims, queue, publisher
        self._runs, self._in_flight = runs, in_flight
        self._me, self._max_redeliveries = worker_id, max_redeliveries
        self._alone_from = alone_from(max_redeliveries)
        self._acks: list[bytes] = []
        self._flushing: asyncio.Task[None] | None = None
        self._waiting = False

    # -- claim --------------------------------------------------------------------------

    async def claim(self, free: int) -> list[Attempt]:
        """Ack what has ended and claim up to `free` runs; returns at once, maybe with none.

        Raises `StorageError`; what was claimed by then is given back.
        """
        acks, self._acks = self._acks, []
        try:
            claim = await self._claims.claim(free, acks)
        except StorageError:
            self._acks += acks
            raise
        return await self._admit(claim)

    async def say_lack(self, text: str) -> None:
        """Say why nothing is claimed; with Redis away it can't be told."""
        with contextlib.suppress(StorageError):
            await self._claims.say_lack(text)

    async def wait(self) -> bytes | None:
        """Wait a few seconds for an entry and take it; `admit` claims its run."""
        self._waiting = True
        try:
            await self.flush()
            return await self._claims.wait()
        finally:
            self._waiting = False

    async def admit(self, entry: bytes) -> list[Attempt]:
        """Claim the run of an entry that `wait` brought."""
        return await self._admit(Claim([entry], self._claims.now_us()))

    async def take_aside(self) -> list[Attempt]:
        """Claim the run that waited until nothing else is in flight."""
        aside, self._in_flight.aside = self._in_flight.aside, None
        return [] if aside is None else await self._settle_all(dict([aside]), self._claims.now_us(), [])

    async def adopt(self, seen: Run, now: int) -> Attempt | None:
        """Take over a run that is ours by its row but has no entry and no task: a reply was lost."""
        entry = Job.of(seen, now).encode()
        await self._claims.reregister(entry)
        return await self._settle(seen.run_id, entry, now)

    async def _admit(self, claim: Claim) -> list[Attempt]:
        entries = await self._sort(claim)
        if not entries:
            return []
        try:
            runs = await self._runs.claim(
                list(entries), self._me, claim.now, redelivered_below=self._alone_from
            )
        except StorageError:
            await self.requeue(entries.values())
            raise
        claimed = [Attempt(run, entries.pop(run.run_id)) for run in runs]
        return await self._settle_all(entries, claim.now, claimed)

    async def _settle_all(self, entries: dict[str, bytes], now: int, claimed: list[Attempt]) -> list[Attempt]:
        """Add to what is `claimed` from the rest, until it holds one that runs alone."""
        while entries:
            run_id, entry = next(iter(entries.items()))
            try:
                one = await self._settle(run_id, entry, now, beside=len(claimed))
            except StorageError as error:
                log.warning("entries given back", count=len(entries), error=str(error))
                await self.requeue(entries.values())
                break
            del entries[run_id]
            if one is not None:
                claimed.append(one)
            if self._in_flight.aside is not None or (one is not None and one.alone):
                await self.requeue(entries.values())
                break
        return claimed

    async def _sort(self, claim: Claim) -> dict[str, bytes]:
        """Bury what is no entry, drop what is here already; return the rest by run id."""
        entries: dict[str, bytes] = {}
        for entry in claim.entries:
            run_id = run_id_of(entry)
            if run_id is None:
                await self.dead_letter(entry, "malformed", claim.now)
            elif run_id in entries or run_id in self._in_flight:
                self.ack(entry)
            else:
                entries[run_id] = entry
        return entries

    async def _settle(self, run_id: str, entry: bytes, now: int, beside: int = 0) -> Attempt | None:
        """Deal with an entry whose run is not simply queued and due; `beside`: runs claimed along with it."""
        run = await self._runs.get(run_id)
        owner = run.worker_id if run and run.status is RunStatus.RUNNING else None
        verdict = judge(
            run,
            now=now,
            me=self._me,
            in_flight=run_id in self._in_flight,
            owner_alive=owner is not None and await self._queue.worker_alive(owner),
            max_redeliveries=self._max_redeliveries,
        )
        if run is None or verdict is Verdict.UNKNOWN:
            await self.dead_letter(entry, "unknown_run", now)
        elif verdict is Verdict.DROP:
            self.ack(entry)
        elif verdict is Verdict.DELAY:
            await self._claims.delay(entry, entry, run.next_attempt_at or now)
        elif run.status is not RunStatus.RUNNING and verdict is Verdict.CANCEL:
            await self.end_cancelled(run_id, entry, now)
        elif verdict is Verdict.TAKE and self._alone(run) and beside + len(self._in_flight):
            log.warning("run waits until it can run alone", run_id=run_id, redeliveries=redelivered(run))
            self._in_flight.aside = (run_id, entry)
        else:
            return await self._take_over(run, verdict, entry, now, beside)
        return None

    def _alone(self, run: Run) -> bool:
        return redelivered(run) >= self._alone_from

    async def _take_over(
        self, seen: Run, verdict: Verdict, entry: bytes, now: int, beside: int
    ) -> Attempt | None:
        run = await self._runs.take_over(seen, self._me, now)
        if run is None:  # another worker was faster, or the row has changed: look again
            return await self._settle(seen.run_id, entry, now, beside)
        if seen.status is RunStatus.RUNNING:
            REDELIVERIES.inc()
            log.warning("run taken over", run_id=run.run_id, attempt=run.attempt, lost_worker=seen.worker_id)
        if verdict is Verdict.CANCEL:
            return Attempt(run, entry, RunFailure(ErrorCode.CANCELLED, "cancelled while no worker had it"))
        if verdict is Verdict.POISON:
            message = f"its worker died {seen.redeliveries + 1} times; not tried again"
            return Attempt(run, entry, RunFailure(ErrorCode.WORKER_LOST, message, retried=False))
        return Attempt(run, entry, alone=self._alone(seen))

    # -- let go -------------------------------------------------------------------------

    def ack(self, entry: bytes) -> None:
        """Release an entry whose run needs it no more; sent with the next claim, or soon."""
        self._acks.append(entry)
        if self._waiting and self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())

    async def retry(self, run: Run, entry: bytes, due_us: int) -> None:
        """Let the run come back at `due_us`."""
        await self._claims.delay(entry, delayed_job(run, due_us).encode(), due_us)

    async def dead_letter(
        self, entry: bytes, reason: str, now: int, error: dict[str, Any] | None = None
    ) -> None:
        """Keep the entry as a dead letter."""
        if await self._claims.dead_letter(entry, reason, now, error):
            DEAD_LETTERS.labels(reason).inc()
            log.warning("dead letter", reason=reason, raw=entry[:200].decode(errors="replace"))

    async def requeue(self, entries: Iterable[bytes]) -> None:
        """Put entries back to where they are taken next; a reaper does it where Redis is away."""
        try:
            for entry in entries:
                await self._claims.requeue(entry)
        except StorageError as error:
            log.warning("entries could not be given back", error=str(error))

    async def end_cancelled(self, run_id: str, entry: bytes, now: int) -> None:
        """End a run that is queued and carries a cancel request."""
        changed = await self._runs.request_cancel(run_id, now)
        self.ack(entry)
        await self._publisher.announce(changed.events)

    async def reregister(self, entry: bytes) -> None:
        """Enter an entry of ours again that our list in Redis has lost."""
        await self._claims.reregister(entry)

    async def flush(self) -> None:
        """Send the acks that wait, if Redis answers."""
        acks, self._acks = self._acks, []
        try:
            if acks:
                await self._claims.claim(0, acks)
        except StorageError:
            self._acks += acks

    async def _flush(self) -> None:
        try:
            await asyncio.sleep(0)  # let what ends in the same moment join
            await self.flush()
        except Exception:  # the entries are requeued as unknown ones, and dropped then
            log.exception("acks could not be sent")
        finally:
            self._flushing = None
