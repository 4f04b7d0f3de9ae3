"""The parts of a worker: built once from the settings, handed out by name, closed in one place."""

from __future__ import annotations

from random import Random
from typing import cast

from app.agent.rows import AgentStores
from app.config import Settings
from app.core.clock import now_us
from app.core.periodic import Backoff, Periodic
from app.db.approval_store import ApprovalStore
from app.db.call_store import CallStore
from app.db.engine import Database
from app.db.inbox_store import InboxStore
from app.db.log_retention import LogUpkeep
from app.db.log_store import LogStore
from app.db.project_store import ProjectStore
from app.db.run_store import RunStore
from app.db.schedule_store import ScheduleStore
from app.db.token_store import TokenStore
from app.execution.program_slots import ProgramSlots
from app.llm.pool import ModelPool
from app.maintenance.job_sweeper import SWEEP_EVERY_S, Jobs, JobSweeper
from app.maintenance.log_janitor import JANITOR_EVERY_S, Janitor, LogArchiver
from app.maintenance.reconciler import RECONCILE_EVERY_S, Reconciler
from app.maintenance.scheduler import SCHEDULE_EVERY_S, Scheduler
from app.maintenance.usage import USAGE_LOOK_EVERY_S, UsageCount
from app.maintenance.webhooks import open_webhooks
from app.plan.task_types import load
from app.redis.claims import Claims
from app.redis.clients import RedisClients
from app.redis.lease import TICK_EVERY_S, Ticks
from app.redis.publisher import Publisher, Tail
from app.redis.queue import Queue
from app.redis.subscriber import Signals
from app.runs.readiness import StoreCheck
from app.runs.waiting import LOOK_EVERY_S, OVERDUE_EVERY_S, OverdueWaits, WaitingLines, lacking
from app.storage.factory import open_workspaces
from app.storage.scratch import Scratch
from app.worker.attempts import InFlight
from app.worker.health import ClaimReadiness
from app.worker.job_processor import AttemptContext
from app.worker.job_queue import JobQueue
from app.worker.project_source import ProjectSource, Secrets
from app.worker.resources import Resources, open_executor

_PURGE_EVERY_S = 600.0
"""How often tokens that have expired are deleted."""
_LOOK_AGAIN_S = 20.0
"""At most so long a run rests before the next look at infrastructure that was away."""


class Wiring:
    """The parts of one worker. Raises what makes a start impossible: bad settings, a bad tasks file."""

    def __init__(self, settings: Settings, worker_id: str) -> None:
        self.settings, self.worker_id = settings, worker_id
        self.in_flight = InFlight()
        self._redis = RedisClients.for_worker(settings.redis)
        self._db = Database(settings.data.effective_database_url)
        self.runs = RunStore(self._db)
        self.ticks = Ticks(self._redis, settings.worker.lease_s)
        self.signals = Signals(self._redis)
        self.resources = Resources.of(settings)
        self.readiness = ClaimReadiness(
            StoreCheck(settings.data.effective_database_url, self._db, self._redis), self.resources
        )
        self._workspaces = open_workspaces(settings)
        self._projects = ProjectSource(ProjectStore(self._db, settings.projects.keys), settings.projects)
        self._scratch = Scratch(settings.data.tmp_dir / "tools")
        self.executor = open_executor(settings, self._workspaces, self._scratch.folder(), now_us)
        self._pushes = Queue(self._redis)
        self._publisher = Publisher(
            self._redis, batch=settings.log.batch, tail_ttl_s=settings.redis.tail_ttl_s
        )
        self.queue = JobQueue(
            Claims(self._redis, worker_id, settings.worker.lease_s),
            self._pushes,
            self._publisher,
            self.runs,
            self.in_flight,
            worker_id=worker_id,
            max_redeliveries=settings.runs.max_redeliveries,
        )
        self._models = ModelPool.of(settings.llm)
        self._webhooks = open_webhooks(settings.webhooks, self._db, self.runs, clock=now_us)
        self.bench = self._bench()

    def _bench(self) -> AttemptContext:
        settings = self.settings
        return AttemptContext(
            worker_id=self.worker_id,
            runs=self.runs,
            queue=self.queue,
            publisher=self._publisher,
            tail=Tail(self._redis),
            workspaces=self._workspaces,
            executor=self.executor,
            clock=now_us,
            backoff=Backoff(settings.runs.retry_base_s, settings.runs.retry_max_s, Random()),  # noqa: S311 - jitter
            patience=Backoff(1, _LOOK_AGAIN_S, Random()),  # noqa: S311 - jitter
            secrets=Secrets(settings),
            task_types=load(settings.tasks.file),
            projects=self._projects,
            programs=ProgramSlots(settings.worker.concurrency),
            models=self._models,
            agents=AgentStores(self.runs, CallStore(self._db), InboxStore(self._db), ApprovalStore(self._db)),
            settings=settings,
        )

    # -- periodic work, of which one worker at a time does the most -----------------------

    def periodic(self) -> list[Periodic]:
        """Return the work that runs beside the runs for as long as the worker serves."""
        scheduler, janitor = self._scheduler(), self._janitor()
        waiting = WaitingLines(self._pushes, self.runs, self._publisher, now_us, lacking)
        overdue = OverdueWaits(self._pushes, self.runs, self._publisher, now_us)
        reconciler, tokens = Reconciler(self.runs, self._pushes, now_us), TokenStore(self._db)
        work = [
            Periodic("ticks", TICK_EVERY_S, self.ticks.tick, again_most_s=TICK_EVERY_S),
            Periodic("reconciler", RECONCILE_EVERY_S, reconciler.reconcile, lead=self._lead),
            Periodic("scheduler", SCHEDULE_EVERY_S, scheduler.fire_due, lead=self._lead),
            Periodic("janitor", JANITOR_EVERY_S, janitor.sweep, lead=self._lead, on_idle=janitor.idle),
            Periodic("tokens", _PURGE_EVERY_S, lambda: tokens.purge_expired(now_us()), lead=self._lead),
            Periodic("waiting", LOOK_EVERY_S, waiting.look, lead=self._lead),
            Periodic("overdue", OVERDUE_EVERY_S, overdue.look, lead=self._lead),
        ]
        if self.settings.storage.usage_every_s:
            count = UsageCount(self._workspaces, self.settings.storage.usage_every_s)
            usage = Periodic("usage", USAGE_LOOK_EVERY_S, count.look, lead=self._lead, on_idle=count.idle)
            work.append(usage)
        if self._webhooks is not None:
            work.append(self._webhooks.periodic(self._lead))
        if self.executor.reattaches:
            sweeper = JobSweeper(cast("Jobs", self.executor), self.runs)
            work.append(Periodic("jobs", SWEEP_EVERY_S, sweeper.sweep, lead=self._lead))
        return work

    async def _lead(self, role: str, ttl_s: float) -> bool:
        return await self.ticks.lead(role, self.worker_id, ttl_s)

    def _scheduler(self) -> Scheduler:
        return Scheduler(
            ScheduleStore(self._db), self._pushes, backlog_max=self.settings.runs.user_backlog_max
        )

    def _janitor(self) -> Janitor:
        return Janitor(
            LogUpkeep(self._db),
            LogArchiver(LogStore(self._db), self._workspaces),
            self.settings.log,
            clock=now_us,
        )

    # -- end ----------------------------------------------------------------------------

    async def close(self) -> None:
        """Close everything."""
        if self._webhooks is not None:
            await self._webhooks.close()
        await self._models.close()
        await self.executor.close()
        self._scratch.close()
        await self._workspaces.close()
        await self._projects.close()
        await self._redis.close()
        await self._db.close()
