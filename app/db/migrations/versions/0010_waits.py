"""An index of the runs that wait for a person, by when their wait is over.

Expands only. On PostgreSQL it is built beside the traffic, after this transaction:
see `app.db.migrate`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0008"


def upgrade() -> None:
    """Make the index, where nobody writes meanwhile anyway."""
    if op.get_bind().dialect.name == "sqlite":
        waiting = sa.text("'' || status = 'waiting'")
        op.create_index("runs_by_patience", "runs", ["next_attempt_at"], sqlite_where=waiting)
