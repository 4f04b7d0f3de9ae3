"""What a worker is made of: built once from the settings, handed out by name, closed in one place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import cast

from app.config import Settings
from app.core.clock import now_us
from app.core.periodic import Backoff
from app.db.engine import Database
from app.db.log_retention import LogUpkeep
from app.db.log_store import LogStore
from app.db.project_store import ProjectStore
from app.db.run_store import RunStore
from app.db.schedule_store import ScheduleStore
from app.maintenance.job_sweeper import Jobs, JobSweeper
from app.maintenance.leadership import Leadership
from app.maintenance.log_janitor import Janitor, JanitorPolicy, LogArchiver
from app.maintenance.reaper import Reaper, Reconciler
from app.maintenance.scheduler import Scheduler
from app.maintenance.usage import UsageCount
from app.maintenance.webhooks import Webhooks, open_webhooks
from app.plan.task_types import load
from app.redis.claims import Claims
from app.redis.clients import RedisClients
from app.redis.publisher import Publisher, Tail
from app.redis.queue import Queue
from app.redis.subscriber import Signals
from app.redis.ticks import Ticks
from app.storage.factory import open_workspaces
from app.storage.scratch import Scratch
from app.stream.writer import LogPolicy
from app.worker.health import Readiness
from app.worker.in_flight import InFlight
from app.worker.job_processor import AttemptContext
from app.worker.job_queue import JobQueue
from app.worker.project_source import ProjectSource, Secrets
from app.worker.resources import Resources, open_executor

Periodic = Callable[[], Awaitable[None]]
"""Work that goes on until it is cancelled."""


class Wiring:
    """The parts of one worker. Raises what makes a start impossible: bad settings, a bad tasks file."""

    def __init__(self, settings: Settings, worker_id: str) -> None:
        self.settings, self.worker_id = settings, worker_id
        self.in_flight = InFlight()
        self._redis = RedisClients.for_worker(settings)
        self._db = Database(settings.effective_database_url)
        self.runs = RunStore(self._db)
        self.ticks = Ticks(self._redis, settings.lease_s)
        self.signals = Signals(self._redis)
        self.resources = Resources.of(settings)
        self.readiness = Readiness(
            settings.effective_database_url, self._redis, self._db, self.runs, self.resources
        )
        self._workspaces = open_workspaces(settings)
        self._projects = ProjectSource(ProjectStore(self._db, settings.project_keys), settings)
        self._scratch = Scratch(settings.tmp_dir / "tools")
        self.executor = open_executor(settings, self._workspaces, self._scratch.folder(), now_us)
        self._pushes = Queue(self._redis)
        self._publisher = Publisher(self._redis, batch=settings.log_batch, tail_ttl_s=settings.tail_ttl_s)
        self.queue = JobQueue(
            Claims(self._redis, worker_id, settings.lease_s),
            self._pushes,
            self._publisher,
            self.runs,
            self.in_flight,
            worker_id=worker_id,
            max_redeliveries=settings.job_max_redeliveries,
        )
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
            log_policy=LogPolicy(
                settings.log_batch, settings.log_linger_s, settings.log_max_bytes, settings.log_buffer_bytes
            ),
            backoff=Backoff(settings.retry_base_s, settings.retry_max_s, Random()),  # noqa: S311 - jitter
            secrets=Secrets(settings),
            task_types=load(settings.tasks_file),
            projects=self._projects,
            settings=settings,
        )

    # -- periodic work, of which one worker at a time does the most -----------------------

    def periodic(self) -> dict[str, Periodic]:
        """Return by name what goes on beside the runs for as long as the worker serves."""
        work: dict[str, Periodic] = {
            "reaper": self._reaper().run,
            "scheduler": self._scheduler().run,
            "janitor": self._janitor().run,
            "usage": self._usage().run,
            "webhooks": self._webhooks().run,
        }
        if self.executor.reattaches:
            jobs = cast("Jobs", self.executor)
            work["jobs"] = JobSweeper(jobs, self.runs, self.ticks, self.worker_id).run
        return work

    def _reaper(self) -> Reaper:
        return Reaper(self.ticks, Reconciler(self.runs, self._pushes, now_us), self.worker_id)

    def _scheduler(self) -> Scheduler:
        schedules, limit = ScheduleStore(self._db), self.settings.user_backlog_max
        return Scheduler(schedules, self._pushes, self._leadership("scheduler"), backlog_max=limit)

    def _webhooks(self) -> Webhooks:
        leadership = self._leadership("webhooks")
        return open_webhooks(self.settings, self._db, self.runs, leadership, clock=now_us)

    def _leadership(self, role: str) -> Leadership:
        return Leadership(self.ticks, role, self.worker_id)

    def _janitor(self) -> Janitor:
        settings = self.settings
        return Janitor(
            self.ticks,
            LogUpkeep(self._db),
            LogArchiver(LogStore(self._db), self._workspaces),
            JanitorPolicy(
                settings.log_pack_after_s, settings.log_retention_days, settings.log_archive == "on"
            ),
            clock=now_us,
            worker_id=self.worker_id,
        )

    def _usage(self) -> UsageCount:
        return UsageCount(self.ticks, self._workspaces, self.worker_id, self.settings.usage_every_s)

    # -- end ----------------------------------------------------------------------------

    async def close(self) -> None:
        """Let go of everything."""
        await self.executor.close()
        self._scratch.close()
        await self._workspaces.close()
        await self._projects.close()
        await self._redis.close()
        await self._db.close()
