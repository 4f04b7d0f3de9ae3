"""The rows of agents: calls of models, messages to a running agent, approvals.

Expands only: a release that does not know the columns leaves them empty, or at 0.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make `model_calls`, `inbox`, `approvals`; add columns to `runs` and `steps`."""
    for name in ("agent", "result", "waiting_for"):
        op.add_column("runs", sa.Column(name, sa.Text))
    for name in ("spent_u", "spent_tokens"):
        op.add_column("runs", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("steps", sa.Column("call", sa.Integer))
    for name in ("call_id", "policy", "for_model"):
        op.add_column("steps", sa.Column(name, sa.Text))
    _model_calls()
    op.create_table(
        "inbox",
        _run_id(),
        sa.Column("k", sa.Integer, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("content", "mode", "by")),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("idempotency_key", sa.Text),
    )
    given = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        *("inbox_by_idempotency_key", "inbox", ["run_id", "idempotency_key"]),
        unique=True,
        sqlite_where=given,
        postgresql_where=given,
    )
    op.create_table(
        "approvals",
        _run_id(),
        sa.Column("step_id", sa.Text, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("args_sha256", "rule")),
        sa.Column("asked_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        *(sa.Column(name, sa.Text) for name in ("decision", "by")),
        sa.Column("decided_at", sa.BigInteger),
        sa.Column("note", sa.Text),
    )


def _model_calls() -> None:
    words = ("model", "dialect", "request_hash")
    counts = ("input", "cached", "cache_written", "output", "reasoning")
    op.create_table(
        "model_calls",
        _run_id(),
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("agent", "purpose", "status")),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("attempt", "tries")),
        *(sa.Column(name, sa.Text, nullable=False) for name in words),
        sa.Column("inbox_upto", sa.Integer, nullable=False),
        sa.Column("reserved_tokens", sa.BigInteger, nullable=False),
        sa.Column("reserved_u", sa.BigInteger),
        sa.Column("sent_at", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.BigInteger) for name in ("first_at", "ended_at")),
        sa.Column("finish", sa.Text),
        *(sa.Column(f"{name}_tokens", sa.BigInteger, nullable=False) for name in counts),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("cost_u", sa.BigInteger),
        *(sa.Column(name, sa.Text) for name in ("response_id", "error", "view", "prefix")),
        sa.Column("reply", sa.LargeBinary),
    )


def _run_id() -> sa.Column[str]:
    return sa.Column("run_id", sa.Text, sa.ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True)
