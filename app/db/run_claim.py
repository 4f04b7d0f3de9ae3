"""How a run gets its owner: the fast claim of many at once, and the take-over of one; and who still is it.

Both raise `attempt` by one, which fences every write of the owner before. PostgreSQL claims in one
statement, in the order of run ids, so that two claims of the same runs can't lock each other out.

A claim reaches its rows by their ids alone. Its tests of the status are written as expressions that no index
holds: by statistics of a quieter time "all that is queued" looks like the shorter way in, and is a
hundred thousand rows an hour later. For the same reason the ids come as an array, and not as a join.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, insert, select, text, update

from app.core.errors import LostOwnership
from app.core.models import Fence, Run, RunStatus
from app.db.engine import Database
from app.db.run_queries import RUN_ROW, RUN_SQL
from app.db.tables import attempts, runs

EVER = 2**31 - 1
"""More redeliveries than any run has."""

_CLAIM = f"""UPDATE runs SET status = 'running', attempt = attempt + 1, worker_id = CAST(:worker_id AS text),
 started_at = coalesce(started_at, CAST(:now AS bigint)),
 queued_at = coalesce(queued_at, CAST(:now AS bigint)),
 next_attempt_at = NULL, error = NULL, exit_code = NULL
  WHERE run_id {{ids}} AND cancel_requested_at IS NULL
 AND redeliveries < CAST(:redelivered_below AS integer) AND (status || '' = 'created'
 OR (status || '' = 'queued' AND (next_attempt_at IS NULL OR next_attempt_at <= CAST(:now AS bigint))))
 RETURNING {RUN_SQL}"""
_LOCKED_IDS = "SELECT run_id FROM runs WHERE run_id = ANY(CAST(:ids AS text[])) ORDER BY run_id FOR UPDATE"
_CLAIM_SQLITE = text(_CLAIM.format(ids="IN (SELECT value FROM json_each(:ids))"))
_CLAIM_POSTGRES = text(
    f"""WITH claimed AS ({_CLAIM.format(ids=f"= ANY(ARRAY({_LOCKED_IDS}))")}),
 opened AS (INSERT INTO attempts (run_id, attempt, worker_id, started_at)
 SELECT run_id, attempt, worker_id, CAST(:now AS bigint) FROM claimed)
 SELECT {RUN_SQL} FROM claimed""",
)


async def claim(
    db: Database, run_ids: Sequence[str], worker_id: str, now: int, redelivered_below: int = EVER
) -> list[Run]:
    """Make `worker_id` the owner of those runs that wait and are due; return them."""
    work = _claim_sqlite if db.dialect == "sqlite" else _claim_postgres
    values = {"worker_id": worker_id, "now": now, "redelivered_below": redelivered_below}
    rows = await db.write_one(lambda connection: work(connection, run_ids, values))
    return [RUN_ROW.read(row) for row in rows]


def _claim_postgres(connection: Connection, ids: Sequence[str], values: dict[str, Any]) -> Sequence[Any]:
    return connection.execute(_CLAIM_POSTGRES, {"ids": list(ids), **values}).all()


def _claim_sqlite(connection: Connection, ids: Sequence[str], values: dict[str, Any]) -> Sequence[Any]:
    worker_id, now = values["worker_id"], values["now"]
    rows = connection.execute(_CLAIM_SQLITE, {"ids": orjson.dumps(list(ids)).decode(), **values}).all()
    if rows:
        connection.execute(
            insert(attempts), [_opened(row.run_id, row.attempt, worker_id, now) for row in rows]
        )
    return rows


def take_over(connection: Connection, seen: Run, worker_id: str, now: int) -> Run | None:
    """Make `worker_id` the owner, if the row is still as `seen`. None: another worker was faster."""
    if seen.status.terminal or seen.status is RunStatus.WAITING:
        return None
    was_running = seen.status is RunStatus.RUNNING
    statement = (
        update(runs)
        .where(*as_seen(seen))
        .values(
            status=RunStatus.RUNNING,
            attempt=runs.c.attempt + 1,
            worker_id=worker_id,
            redeliveries=runs.c.redeliveries + int(was_running),
            started_at=now if seen.started_at is None else runs.c.started_at,
            queued_at=now if seen.queued_at is None else runs.c.queued_at,
            next_attempt_at=None,
            error=None,
            exit_code=None,
        )
        .returning(*RUN_ROW.columns)
    )
    row = connection.execute(statement).first()
    if row is None:
        return None
    if was_running:
        close_lost_attempt(connection, seen, now)
    connection.execute(insert(attempts), [_opened(seen.run_id, seen.attempt + 1, worker_id, now)])
    return RUN_ROW.read(row)


def hold(connection: Connection, fence: Fence) -> None:
    """Lock the run's row for the rest of the transaction; LostOwnership when `fence` is not its owner's."""
    row = (runs.c.run_id == fence.run_id) & (runs.c.attempt == fence.attempt)
    mine = row & (runs.c.worker_id == fence.worker_id) & (runs.c.status.concat("") == RunStatus.RUNNING.value)
    if connection.execute(select(runs.c.run_id).where(mine).with_for_update()).first() is None:
        raise LostOwnership(f"{fence.run_id}: attempt {fence.attempt} is not the owner any more")


def as_seen(seen: Run) -> tuple[Any, ...]:
    """Return the conditions under which the row still has the owner and state that `seen` had."""
    return (
        runs.c.run_id == seen.run_id,
        runs.c.attempt == seen.attempt,
        runs.c.status.concat("") == seen.status.value,
        runs.c.worker_id.is_not_distinct_from(seen.worker_id),
    )


def close_lost_attempt(connection: Connection, seen: Run, now: int) -> None:
    """Note that the attempt's worker was lost."""
    row = (attempts.c.run_id == seen.run_id) & (attempts.c.attempt == seen.attempt)
    connection.execute(update(attempts).where(row).values(ended_at=now, outcome="lost"))


def _opened(run_id: str, attempt: int, worker_id: str, now: int) -> dict[str, Any]:
    return {"run_id": run_id, "attempt": attempt, "worker_id": worker_id, "started_at": now}
