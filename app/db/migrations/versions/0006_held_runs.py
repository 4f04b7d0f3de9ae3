"""Held runs by user: they count towards a user's backlog, and are counted from an index.

Expands only: a release that does not know the index keeps it up to date all the same.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the index."""
    held = sa.text("status = 'created'")
    op.create_index("runs_by_held", "runs", ["user_id"], sqlite_where=held, postgresql_where=held)
