"""The slots of a worker: claims exactly as many runs as there are free ones, each a task of its own.

What a run is, is only known once it is claimed. So runs are claimed while there is room for a program and
for an agent; agents are counted apart then, for they mostly wait for their models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from app.agent.planner import is_agent
from app.core.errors import StorageError
from app.core.models import Run
from app.core.telemetry import AGENTS, SLOTS_BUSY
from app.worker.attempts import Attempt, InFlight
from app.worker.health import ClaimReadiness
from app.worker.job_processor import AttemptContext, JobProcessor
from app.worker.resources import FRESH_S, Resources
from tailrun.process.stop import StopReason

_FEW, _GATHER_S = 3, 0.002
"""While more runs wait, a third of the slots is claimed for at once, if it comes free within 2 ms."""

T = TypeVar("T")

log = structlog.get_logger()


class Slots:
    """Fills `WORKER_CONCURRENCY` slots from the queue, and `WORKER_AGENTS`, until `draining` is set."""

    def __init__(
        self,
        bench: AttemptContext,
        in_flight: InFlight,
        resources: Resources,
        readiness: ClaimReadiness,
        draining: asyncio.Event,
    ) -> None:
        self._bench, self._queue, self._in_flight = bench, bench.queue, in_flight
        self._count = bench.settings.worker.concurrency
        self._programs, self._freed = bench.programs, bench.programs.freed
        self._resources, self._readiness, self._draining = resources, readiness, draining
        self._tasks: set[asyncio.Task[None]] = set()
        self._more = False

    # -- claim --------------------------------------------------------------------------

    async def fill(self) -> None:
        """Claim and work until the drain begins."""
        while not self._draining.is_set():
            free = min(self._programs.free, self._bench.settings.worker.agents - self._agents)
            waiting_alone = self._in_flight.aside is not None and len(self._in_flight) > 0
            if free <= 0 or self._in_flight.closed or waiting_alone:
                self._freed.clear()
                await self._unless_draining(self._freed.wait())
            elif lack := self._resources.lack():
                await self._queue.say_lack(lack)
                await self._unless_draining(asyncio.sleep(FRESH_S))
            elif self._more and free < self._count // _FEW:
                self._more = False
                await asyncio.sleep(_GATHER_S)
            else:
                await self._claim_or_wait(free)

    async def _claim_or_wait(self, free: int) -> None:
        """Claim; where Redis or the database is away, claim nothing until both answer."""
        try:
            await self._claim(free)
        except StorageError as error:
            log.warning("claiming stops", error=str(error))
            await self._readiness.pause(self._draining, str(error))
            await self._readiness.wait(self._draining)

    async def _claim(self, free: int) -> None:
        """Claim what there is; if there is nothing, wait a few seconds for the next entry."""
        if self._in_flight.aside is not None:
            self._start(await self._queue.take_aside())
            return
        claimed = await self._queue.claim(free)
        self._more = len(claimed) == free
        self._readiness.trouble = ""
        if not claimed:
            entry = await self._unless_draining(self._queue.wait())
            if entry is not None and self._resources.lack():
                await self._queue.requeue([entry])
                return
            claimed = await self._queue.admit(entry) if entry is not None else []
        self._start(claimed)

    async def _unless_draining(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Await `work`, or give it up when the drain begins."""
        task, draining = asyncio.create_task(work), asyncio.create_task(self._draining.wait())
        await asyncio.wait((task, draining), return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return None

    # -- work ---------------------------------------------------------------------------

    async def adopt(self, run: Run) -> None:
        """Work on a run that is ours in the database and unknown here; not beside one that runs alone."""
        if self._in_flight.closed:
            return
        claimed = await self._queue.adopt(run, self._bench.clock())
        self._start([claimed] if claimed is not None else [])

    @property
    def _agents(self) -> int:
        return sum(1 for attempt in self._in_flight.values() if is_agent(attempt.run))

    def _start(self, claimed: list[Attempt]) -> None:
        for attempt in claimed:
            self._in_flight[attempt.run.run_id] = attempt
            if not is_agent(attempt.run):
                self._programs.take()
            task = asyncio.create_task(self._process(attempt))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._count_up()

    def _count_up(self) -> None:
        agents = self._agents
        AGENTS.set(agents)
        SLOTS_BUSY.set(len(self._in_flight) - agents)

    async def _process(self, attempt: Attempt) -> None:
        try:
            await JobProcessor(self._bench, attempt).process()
        except Exception:  # its entry is left in our list, so that the run is taken over
            log.exception("attempt broke off", run_id=attempt.run.run_id, attempt=attempt.run.attempt)
        finally:
            self._in_flight.pop(attempt.run.run_id, None)
            if not is_agent(attempt.run):
                self._programs.give()
            self._count_up()
            self._freed.set()

    # -- drain --------------------------------------------------------------------------

    async def drain(self, told_to_stop: asyncio.Event) -> None:
        """Let runs finish: all of them, but from `told_to_stop` on for `DRAIN_S`; then give them back.

        Where programs outlive their worker there is nothing to wait for: the next one continues with them.
        """
        settings = self._bench.settings
        if not self._bench.executor.reattaches:
            told = asyncio.create_task(told_to_stop.wait())
            while self._tasks and not told.done():
                await asyncio.wait((told, *self._tasks), return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            await self._wait_for_tasks(settings.worker.drain_s)
        self._in_flight.stop_all(StopReason.DRAIN)
        await self._wait_for_tasks(settings.tools.cancel_grace_s + 10)
        await self._queue.flush()

    async def _wait_for_tasks(self, timeout_s: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
