"""Rows of runs and steps: their columns are the fields of `Run` and `StepRecord`, listed nowhere else."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, literal

from app.core.models import Run, StepRecord
from app.db.lenient import from_json
from app.db.row_codec import RowCodec
from app.db.tables import attempts, runs, steps

RUN_ROW = RowCodec(Run, runs)
STEP_ROW = RowCodec(StepRecord, steps)

RUN_SQL = ", ".join(RUN_ROW.names)
WITHOUT_SPEC: list[ColumnElement[Any]] = [
    literal("{}").label(column.name) if column.name in {"spec", "agent"} else column
    for column in RUN_ROW.columns
]
"""For lists: a spec may hold megabytes, and an agent's instructions are long."""


ATTEMPT_ENDS = (attempts.c.started_at, attempts.c.ended_at, attempts.c.outcome, attempts.c.error)
"""What `count_waits` reads, in this order."""


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
