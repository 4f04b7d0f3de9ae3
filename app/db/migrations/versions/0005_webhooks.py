"""Webhooks: where to tell of a run's end, and how far that has come.

Expands only: a release that does not know the column leaves it empty.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make `webhooks`; add a column to `runs`."""
    op.add_column("runs", sa.Column("webhook_url", sa.Text))
    op.create_table(
        "webhooks",
        sa.Column("run_id", sa.Text, sa.ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("next_at", sa.BigInteger),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("delivered_at", sa.BigInteger),
        sa.Column("tries", sa.Text, nullable=False),
    )
    due = sa.text("next_at IS NOT NULL")
    op.create_index("webhooks_by_time", "webhooks", ["next_at"], sqlite_where=due, postgresql_where=due)
