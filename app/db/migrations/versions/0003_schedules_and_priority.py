"""Schedules; a run's priority, its own retry rules and its time; indexes for the backlog and the rate.

Expands only: a release that does not know the columns leaves them at their defaults.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make `schedules`; add columns and partial indexes to `runs`."""
    op.create_table(
        "schedules",
        sa.Column("schedule_id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("cron", sa.Text, nullable=False),
        sa.Column("timezone", sa.Text, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("next_at", sa.BigInteger),
        sa.Column("last_at", sa.BigInteger),
        sa.Column("last_run_id", sa.Text),
        sa.Column("last_error", sa.Text),
    )
    op.create_index("schedules_by_user", "schedules", ["user_id", "created_at", "schedule_id"])
    op.create_index("schedules_by_time", "schedules", ["next_at"])
    op.add_column("runs", sa.Column("priority", sa.Text, nullable=False, server_default="normal"))
    op.add_column("runs", sa.Column("retry_on", sa.Text))
    op.add_column("runs", sa.Column("run_at", sa.BigInteger))
    _partial_index("runs_by_backlog", "user_id", "status = 'queued'")
    _partial_index("runs_by_end", "ended_at", "ended_at IS NOT NULL")


def _partial_index(name: str, column: str, where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, "runs", [column], sqlite_where=condition, postgresql_where=condition)
