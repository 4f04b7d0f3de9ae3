"""Indexes that keep each question short, however many runs wait or have ended.

Expands only: indexes change nothing for a release that does not know them. On PostgreSQL they are built
beside the traffic, after this transaction: see `app.db.migrate`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_INDEXES = {
    "runs_by_wait": ("runs", ["next_attempt_at", "queued_at"], "'' || status = 'queued'"),
    "runs_by_worker": ("runs", ["worker_id", "run_id"], "'' || status = 'running'"),
    "runs_by_owner": ("runs", [sa.text("(user_id || ' ' || status)"), "created_at", "run_id"], None),
    "runs_by_status_and_age": ("runs", ["status", "created_at", "run_id"], None),
    "tokens_by_expiry": ("tokens", ["expires_at"], "expires_at IS NOT NULL"),
}


def upgrade() -> None:
    """Make the indexes, where nobody writes meanwhile anyway."""
    if op.get_bind().dialect.name == "sqlite":
        for name, (table, columns, where) in _INDEXES.items():
            condition = None if where is None else sa.text(where)
            op.create_index(name, table, columns, sqlite_where=condition)
