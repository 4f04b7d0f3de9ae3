"""What a project keeps sealed, and the project `default`.

Expands only: a release that does not know the column never used the table.
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_DEFAULT = sa.text(
    "INSERT INTO projects (id, config, created_at, updated_at) VALUES ('default', '{}', :now, :now)"
    " ON CONFLICT (id) DO NOTHING"
)


def upgrade() -> None:
    """Add a column to `projects`; make the project of tasks that name none."""
    op.add_column("projects", sa.Column("secrets", sa.Text))
    op.get_bind().execute(_DEFAULT, {"now": time.time_ns() // 1000})
