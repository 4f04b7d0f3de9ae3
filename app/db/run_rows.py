"""Rows of runs and steps: their columns are the fields of `Run` and `StepRecord`, listed nowhere else."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, literal

from app.core.models import Run, StepRecord
from app.db.row_codec import RowCodec
from app.db.tables import runs, steps

RUN_ROW = RowCodec(Run, runs)
STEP_ROW = RowCodec(StepRecord, steps)

RUN_SQL = ", ".join(RUN_ROW.names)
WITHOUT_SPEC: list[ColumnElement[Any]] = [
    literal("{}").label("spec") if column is runs.c.spec else column for column in RUN_ROW.columns
]
"""For lists: a spec may hold megabytes."""
