"""Chunks of the logs of ended runs, and how far each run's log has gone on its way there.

Expands only. A release that does not know the chunks reads `log_lines`, where a packed run has its
`end` and one `truncated` event that stands for all lines in chunks: nothing hangs, and nothing is
called lost. It never deletes a chunk, and its inserts leave `runs.log_stage` NULL, which is right.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make `log_chunks`; add `runs.log_stage` and the index by which the janitor finds its work."""
    op.create_table(
        "log_chunks",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("last_seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("events", sa.Integer, nullable=False),
        sa.Column("lines", sa.Integer, nullable=False),
        sa.Column("levels", sa.Integer, nullable=False),
        sa.Column("streams", sa.Integer, nullable=False),
        sa.Column("marks", sa.Boolean, nullable=False),
        sa.Column("format", sa.Integer, nullable=False),
        # Last, so that what comes before it is read without it.
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        # It is compressed already: PostgreSQL need not try.
        op.execute("ALTER TABLE log_chunks ALTER COLUMN body SET STORAGE EXTERNAL")
    op.add_column("runs", sa.Column("log_stage", sa.Text))
    ended = sa.text("ended_at IS NOT NULL")
    op.create_index(
        "runs_by_log_stage",
        "runs",
        ["log_stage", "ended_at", "run_id"],
        sqlite_where=ended,
        postgresql_where=ended,
    )
