"""The runs: the one place that makes a run and changes its status.

A façade over its parts: `run_create`, `run_claim` (who owns it), `run_commit` (what the owner writes),
`run_change` (what others may do), `run_wait` (how a run waits for a person, and continues) and `run_queries`
(questions about many). Every call may raise `StorageError`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Executable, func, select

from app.core.events import SRC, EventType
from app.core.models import Fence, Run, RunStatus, StepRecord
from app.core.paging import PageCursor, page
from app.db import log_weight, run_change, run_claim, run_commit, run_create, run_queries, run_wait
from app.db.engine import Database
from app.db.log_weight import Kept
from app.db.row_codec import from_json, word
from app.db.run_change import Changed
from app.db.run_commit import Batch, Committed, Cut, Outcome
from app.db.run_create import Created, RunDraft
from app.db.run_queries import ATTEMPT_ENDS, RUN_ROW, STEP_ROW, WITHOUT_SPEC, OpenRun, Waits, count_waits
from app.db.tables import attempts, log_lines, runs, steps

__all__ = [
    "Batch",
    "Changed",
    "Committed",
    "Created",
    "Cut",
    "Outcome",
    "Owner",
    "RunDraft",
    "RunStore",
    "Waits",
]

_AT_ONCE = 1000
_LINES_BACK = 100
"""Lines without a `src`: updates of a progress bar, at most five a second."""


@dataclass(frozen=True, slots=True)
class Owner:
    """An attempt's view of its run: whether it still owns it, and whether it has to stop."""

    attempt: int
    worker_id: str | None
    status: RunStatus
    cancel_requested_at: int | None
    last_seq: int


class RunStore:
    """Runs in the database. Times are microseconds, `now` comes from the caller."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(self, new: RunDraft, now: int) -> Created:
        """Make a run; Conflict when its idempotency key belongs to another request."""
        return await run_create.create(self._db, new, now)

    async def earlier(self, new: RunDraft) -> Created | None:
        """Return the run that the idempotency key of `new` made before; Conflict as `create`."""
        return await run_create.find_earlier(self._db, new)

    async def get(self, run_id: str) -> Run | None:
        """Return the run, or None."""
        rows = await self._select(select(*RUN_ROW.columns).where(runs.c.run_id == run_id))
        return RUN_ROW.read(rows[0]) if rows else None

    async def page(
        self,
        *,
        user_id: str | None,
        status: RunStatus | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Run], str | None]:
        """Return a page, newest first, with empty specs, and the cursor of the next page."""
        query = run_queries.page(user_id, status, limit + 1, PageCursor.parse(cursor), self._db.dialect)
        found = [RUN_ROW.read(row) for row in await self._select(query)]
        return page(found, limit, lambda run: PageCursor(run.created_at, run.run_id))

    async def start(self, run_id: str, now: int) -> Changed:
        """Queue a held run. Already queued or running: no events. Ended: Conflict. Unknown: NotFound."""
        return await self._db.write(lambda connection: run_change.start(connection, run_id, now))

    async def request_cancel(self, run_id: str, now: int) -> Changed:
        """Ask for the end: at once when the run has no owner, else a timestamp. Unknown: NotFound."""
        return await self._db.write(lambda connection: run_change.request_cancel(connection, run_id, now))

    async def note_waiting(self, run_id: str, text: str, now: int) -> Changed:
        """Say in the log of a run that is queued and due why it waits."""
        return await self._db.write(lambda connection: run_change.note_waiting(connection, run_id, text, now))

    async def overdue(self, now: int, limit: int) -> list[str]:
        """Return runs whose time to wait for a person is over, the longest over first."""
        return [row[0] for row in await self._select(run_queries.overdue(now, limit))]

    async def stop_waiting(self, run_id: str, now: int) -> Changed:
        """Wake, or end, a run whose time to wait is over; no events where it is not. Unknown: NotFound."""
        return await self._db.write(lambda connection: run_wait.overdue(connection, run_id, now))

    async def claim(
        self, run_ids: Sequence[str], worker_id: str, now: int, *, redelivered_below: int = run_claim.EVER
    ) -> list[Run]:
        """Own those of the runs that wait, are due and not cancelled; return them in any order.

        Those with as many redeliveries as `redelivered_below` are left to `take_over`.
        """
        if not run_ids:
            return []
        return await run_claim.claim(self._db, run_ids, worker_id, now, redelivered_below)

    async def take_over(self, seen: Run, worker_id: str, now: int) -> Run | None:
        """Own one run, if its row is still as `seen`. None: another worker was faster, or it has ended."""
        return await self._db.write(lambda connection: run_claim.take_over(connection, seen, worker_id, now))

    async def commit(self, fence: Fence, after: int, batch: Batch) -> Committed:
        """Write what an attempt produced since `after`; LostOwnership when it is not the owner."""
        return await run_commit.commit(self._db, fence, after, batch)

    async def owner(self, run_id: str) -> Owner | None:
        """Return who owns the run and whether it shall stop."""
        return (await self.owners([run_id])).get(run_id)

    async def owners(self, run_ids: Sequence[str]) -> dict[str, Owner]:
        """Return the same for many runs, in one query; unknown ones are left out."""
        if not run_ids:
            return {}
        key = runs.c
        columns = (key.run_id, key.attempt, key.worker_id, key.status, key.cancel_requested_at, key.last_seq)
        rows = await self._select(select(*columns).where(key.run_id.in_(run_ids)))
        return {row[0]: Owner(row[1], row[2], word(RunStatus, row[3]), row[4], row[5]) for row in rows}

    async def heads(self, run_ids: Sequence[str]) -> dict[str, tuple[int, RunStatus]]:
        """Return the last sequence number and the status of each run that exists."""
        if not run_ids:
            return {}
        query = select(runs.c.run_id, runs.c.last_seq, runs.c.status).where(runs.c.run_id.in_(run_ids))
        return {run_id: (top, word(RunStatus, status)) for run_id, top, status in await self._select(query)}

    async def steps(self, run_id: str) -> list[StepRecord]:
        """Return the run's step records in the order of the plan."""
        query = (
            select(*STEP_ROW.columns).where(steps.c.run_id == run_id).order_by(steps.c.idx, steps.c.step_id)
        )
        return [STEP_ROW.read(row) for row in await self._select(query)]

    async def waits(self, run_id: str, codes: Collection[str]) -> Waits:
        """Return how often and how long the run was given back for errors of these codes."""
        query = select(*ATTEMPT_ENDS).where(attempts.c.run_id == run_id).order_by(attempts.c.attempt)
        return count_waits(await self._select(query), codes)

    async def last_source(self, run_id: str, step: str) -> str | None:
        """Return the `src` of the newest line of a step that has one: how far its pod's log is kept."""
        line = log_lines.c
        of_step = (line.run_id == run_id) & (line.step == step) & (line.type == EventType.LOG)
        query = select(line.data).where(of_step & line.data.is_not(None)).order_by(line.seq.desc())
        rows = await self._select(query.limit(_LINES_BACK))
        found = (from_json(row[0], {}, "log_lines.data").get(SRC) for row in rows)
        return next((src for src in found if src is not None), None)

    async def kept(self, run_id: str) -> Kept:
        """Return what is stored of the log of a run that has not ended, weighed for the log cap."""
        return await self._db.read_one(lambda connection: log_weight.kept(connection, run_id))

    async def open_runs(self, status: RunStatus, limit: int, after_id: str = "") -> list[OpenRun]:
        """Return runs in a state by id from after `after_id`: what the reconciler compares."""
        return [OpenRun(*row) for row in await self._select(run_queries.open_runs(status, limit, after_id))]

    async def many(self, run_ids: Sequence[str]) -> list[Run]:
        """Return those runs that exist, in any order, with empty specs."""
        found = await self._select(select(*WITHOUT_SPEC).where(runs.c.run_id.in_(run_ids)))
        return [RUN_ROW.read(row) for row in found]

    async def running_on(self, worker_id: str) -> list[Run]:
        """Return the runs that a worker owns by their rows."""
        return [RUN_ROW.read(row) for row in await self._select(run_queries.running_on(worker_id))]

    async def counts(self, states: Collection[RunStatus] = frozenset(RunStatus)) -> dict[RunStatus, int]:
        """Return how many runs there are in each of the states that has any; reads them all."""
        found = await self._select(run_queries.counts(states))
        return {word(RunStatus, status): count for status, count in found}

    async def oldest_queued_at(self) -> int | None:
        """Return since when the run waits that has waited longest."""
        return (await self._select(run_queries.OLDEST_QUEUED))[0][0]

    async def backlog(self, user_id: str, cap: int) -> int:
        """Return how many runs of the user wait or are held, counting no further than `cap`."""
        return await self._db.read_one(lambda connection: run_create.backlog(connection, user_id, cap))

    async def ended_since(self, since: int) -> int:
        """Return how many runs have ended since."""
        return (await self._select(select(func.count()).where(runs.c.ended_at >= since)))[0][0]

    async def users(self, run_ids: Sequence[str]) -> dict[str, str]:
        """Return whose each run is; unknown ones are left out."""
        found: dict[str, str] = {}
        for first in range(0, len(run_ids), _AT_ONCE):
            some = runs.c.run_id.in_(run_ids[first : first + _AT_ONCE])
            found |= {
                row[0]: row[1]
                for row in await self._select(select(runs.c.run_id, runs.c.user_id).where(some))
            }
        return found

    async def _select(self, query: Executable) -> Sequence[Any]:
        def work(connection: Connection) -> Sequence[Any]:
            return connection.execute(query).all()

        return await self._db.read_one(work)
