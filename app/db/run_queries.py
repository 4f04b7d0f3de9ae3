"""The columns of runs and steps, and the questions about many runs.

The columns are the fields of `Run` and `StepRecord`, listed nowhere else.

Each question reads no more rows than it answers with. PostgreSQL chooses an index by its statistics, and
after a burst these are of another time: then "the runs that failed" may be looked for among all runs,
because there were none. So a question here allows one plan only: it compares whole rows of an index'
columns and asks for the index' own order, which no other index has, or uses an expression that one index
holds (`tables.OWNER` and its neighbours). Decision record 0024 has the figures;
`tests/integration/test_plans.py` reads the rows that each statement touches.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, Select, TextClause, func, literal, literal_column, select, text, tuple_

from app.core.models import Run, RunStatus, StepRecord
from app.core.paging import PageCursor
from app.db.row_codec import RowCodec, clean, from_json
from app.db.tables import IS_QUEUED, IS_RUNNING, IS_WAITING, OWNER, attempts, runs, steps

RUN_ROW = RowCodec(Run, runs)
STEP_ROW = RowCodec(StepRecord, steps)

RUN_SQL = ", ".join(RUN_ROW.names)
WITHOUT_SPEC: list[ColumnElement[Any]] = [
    literal("{}").label(column.name) if column.name in {"spec", "agent"} else column
    for column in RUN_ROW.columns
]
"""For lists: a spec may hold megabytes, and an agent's instructions are long."""


ATTEMPT_ENDS = (attempts.c.started_at, attempts.c.ended_at, attempts.c.outcome, attempts.c.error)
"""The columns that `count_waits` reads, in this order."""


@dataclass(frozen=True, slots=True)
class Waits:
    """How often a run was given back, and for how many seconds it then waited in all."""

    times: int = 0
    seconds: float = 0.0


def count_waits(rows: Sequence[Any], codes: Collection[str]) -> Waits:
    """Add up the rests behind attempts that were given back for an error of `codes`; rows in order."""
    rests = [
        max(0, later[0] - earlier[1])
        for earlier, later in pairwise(rows)
        if earlier[1] is not None
        and earlier[2] == "queued"
        and from_json(earlier[3], {}, "attempts.error").get("code") in codes
    ]
    return Waits(len(rests), sum(rests) / 1_000_000)


_RUN = runs.c
_FIRST = -(2**63)
"""Before every time, in microseconds."""

OLDEST_QUEUED: TextClause = text(
    f"""SELECT min(at) FROM (
 SELECT * FROM (SELECT queued_at AS at FROM runs WHERE {IS_QUEUED} AND next_attempt_at IS NULL
 ORDER BY next_attempt_at, queued_at LIMIT 1) AS due UNION ALL
 SELECT * FROM (SELECT next_attempt_at AS at FROM runs WHERE {IS_QUEUED} AND next_attempt_at IS NOT NULL
 ORDER BY next_attempt_at LIMIT 1) AS delayed) AS oldest"""
)
"""Since when the run waits that has waited longest. (PostgreSQL's own `min` would do; SQLite's scans.)"""

BACKLOG: TextClause = text(
    f"""SELECT count(*) FROM (
 SELECT * FROM (SELECT 1 FROM runs WHERE {OWNER} = :queued LIMIT CAST(:cap AS integer)) AS queued UNION ALL
 SELECT * FROM (SELECT 1 FROM runs WHERE {OWNER} = :held LIMIT CAST(:cap AS integer)) AS held UNION ALL
 SELECT * FROM (SELECT 1 FROM runs WHERE {OWNER} = :waiting LIMIT CAST(:cap AS integer)) AS parked
 LIMIT CAST(:cap AS integer)) AS backlog"""
)


@dataclass(frozen=True, slots=True)
class OpenRun:
    """What the reconciler needs of a run that waits or runs. `since`: when it was queued, or made."""

    run_id: str
    worker_id: str | None
    since: int


def owner(user_id: str, status: RunStatus) -> str:
    """Return what `tables.OWNER` is for a user's runs in a state."""
    return f"{user_id} {status.value}"


def page(
    user_id: str | None,
    status: RunStatus | None,
    limit: int,
    before: PageCursor | None,
    dialect: str,
) -> Select[*tuple[Any, ...]]:
    """Ask for runs without their specs, newest first, older than the time and the id of `before`."""
    newest = (_RUN.created_at, _RUN.run_id)
    query = select(*WITHOUT_SPEC).limit(limit)
    kept = _kept(user_id, status)
    if kept is None or dialect == "sqlite":  # which goes by rules, and by an index' expressions only if equal
        query = query if kept is None else query.where(kept[0] == kept[1])
        query = query if before is None else query.where(tuple_(*newest) < tuple_(*before))
        return query.order_by(*(column.desc() for column in newest))
    column, value = kept
    key = (column, *newest)
    inside = (
        tuple_(*key) > tuple_(value, _FIRST, ""),
        column <= value if before is None else tuple_(*key) < tuple_(value, *before),
    )
    return query.where(*inside).order_by(*(column.desc() for column in key))


def _kept(user_id: str | None, status: RunStatus | None) -> tuple[ColumnElement[str], str] | None:
    """Return the column, and its value, by which the runs of a user and in a state are kept together."""
    user = None if user_id is None else clean(user_id)  # row comparisons pass the columns' own types by
    if user is not None and status is not None:
        return literal_column(OWNER, _RUN.user_id.type), owner(user, status)
    if user is not None:
        return _RUN.user_id, user
    return None if status is None else (_RUN.status, status.value)


def open_runs(status: RunStatus, limit: int, after_id: str) -> Select[*tuple[Any, ...]]:
    """Ask for runs in a state, by id from after `after_id`: the columns of `OpenRun`."""
    inside = tuple_(_RUN.status, _RUN.run_id) > tuple_(status.value, after_id), _RUN.status <= status.value
    since = func.coalesce(_RUN.queued_at, _RUN.created_at)
    query = select(_RUN.run_id, _RUN.worker_id, since).order_by(_RUN.status, _RUN.run_id).limit(limit)
    return query.where(*inside)


def running_on(worker_id: str) -> Select[*tuple[Any, ...]]:
    """Ask for the runs that a worker owns by their rows."""
    return select(*RUN_ROW.columns).where(text(IS_RUNNING), _RUN.worker_id == worker_id)


def overdue(now: int, limit: int) -> Select[*tuple[Any, ...]]:
    """Ask for the ids of runs whose time to wait for a person is over."""
    over = _RUN.next_attempt_at <= now
    return select(_RUN.run_id).where(text(IS_WAITING), over).order_by(_RUN.next_attempt_at).limit(limit)


def counts(states: Collection[RunStatus]) -> Select[*tuple[Any, ...]]:
    """Ask (state, how many runs): reads all of them, so ask seldom."""
    wanted = sorted(state.value for state in states)
    return select(_RUN.status, func.count()).where(_RUN.status.in_(wanted)).group_by(_RUN.status)
