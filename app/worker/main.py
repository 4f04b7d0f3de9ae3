"""The worker process: wiring, signals, slots and drain.

start    wait for Redis and the database, take a lease
claim    as many runs as there are free slots, each a task of its own
drain    on SIGTERM: claim no more, let runs finish for a while, give the rest back
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any, TypeVar, cast

import structlog

from app.config import Settings
from app.db.engine import Database
from app.db.log_store import LogStore
from app.db.log_upkeep import LogUpkeep
from app.db.migrate import ensure_current
from app.db.project_store import ProjectStore
from app.db.run_store import RunStore
from app.db.schedule_store import ScheduleStore
from app.errors import StorageError
from app.execution.executor import CannotRun, StopReason
from app.models import Run
from app.redis.address import BadAddress, RedisAddress
from app.redis.claims import Claims
from app.redis.clients import RedisClients
from app.redis.lease import LeaseClient
from app.redis.publisher import Publisher
from app.redis.queue import Queue
from app.redis.server_report import ServerReport
from app.redis.signals import Signals
from app.redis.tail import Tail
from app.redis.ticks import Ticks
from app.storage.factory import open_workspaces
from app.storage.scratch import Scratch
from app.task_file import BadTasksFile, load
from app.telemetry import SLOTS_BUSY, configure_logging
from app.worker.control import Control
from app.worker.health import HealthServer
from app.worker.in_flight import Attempt, InFlight
from app.worker.janitor import Janitor, JanitorPolicy
from app.worker.job_processor import Bench, JobProcessor
from app.worker.job_queue import Claimed, JobQueue
from app.worker.job_sweeper import Jobs, JobSweeper
from app.worker.lease import Lease
from app.worker.log_archiver import LogArchiver
from app.worker.log_writer import LogPolicy
from app.worker.outcome import Backoff
from app.worker.ownership import Ownership, Watch
from app.worker.project_source import ProjectSource
from app.worker.reaper import Reaper
from app.worker.reconciler import Reconciler
from app.worker.resources import FRESH_S, Resources
from app.worker.scheduler import Scheduler
from app.worker.secrets import Secrets
from app.worker.tool_place import open_executor
from app.worker.usage import UsageCount
from app.worker.webhooks import open_webhooks

_RETRY_S = 1.0
_REMARKS_S = 0.5
"""How long `/readyz` waits for what there is to say about Redis; a probe is impatient."""
_FEW, _GATHER_S = 3, 0.002
"""While more runs wait, a third of the slots is claimed for at once, if it comes free within 2 ms."""

T = TypeVar("T")

log = structlog.get_logger()


def now_us() -> int:
    """Return the time in microseconds since the Unix epoch."""
    return time.time_ns() // 1000


class Worker:
    """One worker; `run` returns when it has drained."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._in_flight = InFlight()
        self._tasks: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._draining = asyncio.Event()
        self._more = False
        self._trouble = "starting"
        self._migrated = False
        self._redis = RedisClients.for_worker(settings)
        self._server_report = ServerReport(self._redis)
        self._db = Database(settings.effective_database_url)
        self._runs = RunStore(self._db)
        self._workspaces = open_workspaces(settings)
        self._projects = ProjectSource(ProjectStore(self._db, settings.project_keys), settings)
        self._resources = Resources.of(settings)
        self._scratch = Scratch(settings.tmp_dir / "tools")
        self._executor = open_executor(settings, self._workspaces, self._scratch.folder(), now_us)
        self._claims = Claims(self._redis, self.worker_id, settings.lease_s)
        self._publisher = Publisher(self._redis, batch=settings.log_batch, tail_ttl_s=settings.tail_ttl_s)
        self._ticks = Ticks(self._redis, settings.lease_s)
        queue = Queue(self._redis)
        self._queue = JobQueue(
            self._claims,
            queue,
            self._publisher,
            self._runs,
            self._in_flight,
            worker_id=self.worker_id,
            max_redeliveries=settings.job_max_redeliveries,
        )
        self._reaper = Reaper(self._ticks, Reconciler(self._runs, queue, now_us), self.worker_id)
        self._janitor = self._make_janitor()
        self._usage = UsageCount(self._ticks, self._workspaces, self.worker_id, settings.usage_every_s)
        self._webhooks = open_webhooks(
            settings, self._db, self._runs, self._ticks, clock=now_us, worker_id=self.worker_id
        )
        self._scheduler = Scheduler(
            ScheduleStore(self._db),
            queue,
            self._ticks,
            self.worker_id,
            backlog_max=settings.user_backlog_max,
        )
        self._bench = self._make_bench()

    def _make_janitor(self) -> Janitor:
        settings = self._settings
        return Janitor(
            self._ticks,
            LogUpkeep(self._db),
            LogArchiver(LogStore(self._db), self._workspaces),
            JanitorPolicy(
                settings.log_pack_after_s, settings.log_retention_days, settings.log_archive == "on"
            ),
            clock=now_us,
            worker_id=self.worker_id,
        )

    def _make_bench(self) -> Bench:
        settings = self._settings
        return Bench(
            worker_id=self.worker_id,
            runs=self._runs,
            queue=self._queue,
            publisher=self._publisher,
            tail=Tail(self._redis),
            workspaces=self._workspaces,
            executor=self._executor,
            clock=now_us,
            log_policy=LogPolicy(
                settings.log_batch, settings.log_linger_s, settings.log_max_bytes, settings.log_buffer_bytes
            ),
            backoff=Backoff(settings.retry_base_s, settings.retry_max_s, Random()),  # noqa: S311 - jitter
            secrets=Secrets(settings),
            task_types=load(settings.tasks_file),
            projects=self._projects,
            settings=settings,
        )

    # -- life ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain_begins)
        health = HealthServer(self._settings.worker_host, self._settings.worker_port, self._ready)
        await health.start()
        try:
            if await self._until_ready():
                await self._executor.start()
                for remark in await self._server_report.remarks():
                    log.warning(remark)
                await self._serve(loop)
        finally:
            await health.stop()
            await self._executor.close()
            self._scratch.close()
            await self._workspaces.close()
            await self._projects.close()
            await self._redis.close()
            await self._db.close()

    async def _until_ready(self) -> bool:
        """Wait for Redis and the database; False if told to stop first."""
        while not self._draining.is_set():
            try:
                await self._redis.ping()
                await self._db.ping()
                if not self._migrated:
                    await asyncio.to_thread(ensure_current, self._settings.effective_database_url)
                    self._migrated = True
                await self._runs.counts()
            except StorageError as error:
                self._trouble = str(error)
                log.warning("waiting", error=str(error))
                await _wait(self._draining, _RETRY_S)
            else:
                return True
        return False

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        client = LeaseClient(
            RedisAddress.of(self._settings),
            self._settings.redis_prefix,
            self.worker_id,
            self._settings.lease_s,
        )
        ownership: Ownership | None = None
        lease = Lease(
            client,
            loop,
            on_renewed=self._executor.heartbeat,
            on_held=lambda held: ownership.held(held) if ownership else None,
        )
        watch = Watch(self._settings.lease_s, lambda: lease.age_s, self._executor.heartbeat, self._adopt)
        ownership = Ownership(self._in_flight, self._queue, self._runs, self.worker_id, watch)
        control = Control(Signals(self._redis), self._in_flight, ownership.reread)
        lease.start()
        background = [
            asyncio.create_task(self._forever("ownership", ownership.run())),
            asyncio.create_task(self._forever("control", control.run())),
            asyncio.create_task(self._forever("reaper", self._reaper.run())),
            asyncio.create_task(self._forever("scheduler", self._scheduler.run())),
            asyncio.create_task(self._forever("janitor", self._janitor.run())),
            asyncio.create_task(self._forever("usage", self._usage.run())),
            asyncio.create_task(self._forever("webhooks", self._webhooks.run())),
        ]
        if self._executor.reattaches:
            jobs = cast("Jobs", self._executor)
            sweeper = JobSweeper(jobs, self._runs, self._ticks, self.worker_id)
            background.append(asyncio.create_task(self._forever("jobs", sweeper.run())))
        log.info("worker ready", worker_id=self.worker_id, slots=self._settings.worker_concurrency)
        try:
            await self._claim_until_drained()
            await self._drain()
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await asyncio.to_thread(lease.stop)
            await self._leave()
        log.info("worker gone", worker_id=self.worker_id)

    async def _forever(self, what: str, work: Awaitable[None]) -> None:
        """A background task that ends takes the whole worker down, so that it is started again."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("background task broke, the worker ends", task=what)
            os.kill(os.getpid(), signal.SIGTERM)

    async def _ready(self) -> tuple[bool, str]:
        if self._draining.is_set():
            return False, "draining"
        trouble = self._resources.lack() or self._trouble
        if trouble:
            return False, trouble
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REMARKS_S):
                await self._server_report.remarks()
        remarks = (f"remark: {remark}" for remark in self._server_report.known)
        return True, "\n".join([f"ready, {len(self._in_flight)} runs in flight", *remarks])

    # -- claim --------------------------------------------------------------------------

    async def _claim_until_drained(self) -> None:
        while not self._draining.is_set():
            free = self._settings.worker_concurrency - len(self._in_flight)
            if free <= 0:
                self._freed.clear()
                await self._unless_draining(self._freed.wait())
                continue
            if self._resources.lack():
                await _wait(self._draining, FRESH_S)
                continue
            if self._more and free < self._settings.worker_concurrency // _FEW:
                self._more = False
                await asyncio.sleep(_GATHER_S)
                continue
            try:
                await self._claim(free)
            except StorageError as error:
                await self._claim_failed(error)

    async def _claim(self, free: int) -> None:
        """Claim what there is; if there is nothing, wait a few seconds for the next entry."""
        claimed = await self._queue.claim(free)
        self._more = len(claimed) == free
        self._trouble = ""
        if not claimed:
            entry = await self._unless_draining(self._queue.wait())
            if entry is not None and self._resources.lack():
                await self._queue.give_back([entry])
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

    async def _claim_failed(self, error: StorageError) -> None:
        """Redis or the database is away: claim nothing until both answer."""
        log.warning("claiming stops", error=str(error))
        self._trouble = str(error)
        await _wait(self._draining, _RETRY_S)
        await self._until_ready()

    async def _adopt(self, run: Run) -> None:
        """Work on a run that the database says is ours though nobody here knows it."""
        claimed = await self._queue.adopt(run, now_us())
        self._start([claimed] if claimed is not None else [])

    def _start(self, claimed: list[Claimed]) -> None:
        for one in claimed:
            attempt = Attempt(one.run, one.entry)
            self._in_flight.add(attempt)
            task = asyncio.create_task(self._process(attempt, one))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        SLOTS_BUSY.set(len(self._in_flight))

    async def _process(self, attempt: Attempt, claimed: Claimed) -> None:
        try:
            await JobProcessor(self._bench, attempt, claimed.failure).process()
        finally:
            self._in_flight.remove(attempt)
            SLOTS_BUSY.set(len(self._in_flight))
            self._freed.set()

    # -- drain --------------------------------------------------------------------------

    def _drain_begins(self) -> None:
        if not self._draining.is_set():
            log.info("draining", in_flight=len(self._in_flight), seconds=self._settings.drain_s)
        self._draining.set()

    async def _drain(self) -> None:
        """Let runs finish for `DRAIN_S`, then stop them and give them back.

        Where programs outlive their worker there is nothing to wait for: the next one goes on with them.
        """
        if self._tasks and not self._executor.reattaches:
            await asyncio.wait(self._tasks, timeout=self._settings.drain_s)
        self._in_flight.stop_all(StopReason.DRAIN)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._settings.cancel_grace_s + 10)
        await self._queue.flush()

    async def _leave(self) -> None:
        """Give back whatever our list still holds: the lease is gone, so reap ourselves."""
        try:
            await self._ticks.reap(self.worker_id)
        except StorageError as error:
            log.warning("left without Redis, the lease runs out by itself", error=str(error))


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)


def serve(settings: Settings) -> int:
    """Run a worker until it is told to stop; return the exit code."""
    configure_logging(settings, "worker")
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(Worker(settings).run())
    except (OSError, BadAddress, BadTasksFile, CannotRun) as error:
        log.critical("worker could not start", error=str(error))
        return 1
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
