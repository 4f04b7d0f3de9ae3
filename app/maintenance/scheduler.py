"""Makes the runs of schedules when their time has come, by the clock of Redis.

One worker does it at a time; that saves work, and nothing rests on it: the database lets each
tick make one run (`app.db.schedule_store`). Ticks that no worker was there for are one run, made
late; the next tick is the first one after now.
"""

from __future__ import annotations

import structlog

from app.core.errors import StorageError
from app.core.telemetry import SCHEDULED
from app.db.schedule_store import Schedule, ScheduleStore
from app.plan.cron import next_tick
from app.redis.queue import Queue

SCHEDULE_EVERY_S = 1.0
_BATCH = 100
_ASK_AGAIN_US = 60_000_000
"""How long a schedule rests that cannot be understood here, in microseconds."""

log = structlog.get_logger()


class Scheduler:
    """One worker's part in the schedules; run `fire_due` under one leader."""

    def __init__(self, schedules: ScheduleStore, queue: Queue, *, backlog_max: int) -> None:
        self._schedules, self._queue = schedules, queue
        self._backlog_max = backlog_max

    async def fire_due(self) -> int:
        """Make the runs of all schedules that are due; return how many this worker made."""
        now = await self._queue.time_us()
        made = 0
        while due := await self._schedules.due(now, _BATCH):
            for schedule in due:
                made += await self._fire(schedule, now)
        return made

    async def _fire(self, schedule: Schedule, now: int) -> bool:
        about = {"schedule_id": schedule.schedule_id, "user_id": schedule.user_id}
        try:
            following = next_tick(schedule.cron, schedule.timezone, now)
            run = await self._schedules.fire(schedule, following, now, backlog_max=self._backlog_max)
        except StorageError:
            raise
        except Exception as error:  # whatever its row holds, the others are made
            log.exception("schedule cannot be understood, looked at again later", **about)
            await self._schedules.postpone(schedule, now + _ASK_AGAIN_US, str(error))
            return False
        if run is None:
            return False
        SCHEDULED.inc()
        log.info("run made by a schedule", run_id=run.run_id, **about)
        try:
            await self._queue.push_run(run, now)
        except StorageError as error:
            log.warning("not pushed, the reconciler will", run_id=run.run_id, error=str(error))
        return True
