"""Runs, attempts, steps, log lines, tokens, usage, projects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _run_id() -> sa.Column[str]:
    key = sa.ForeignKey("runs.run_id", ondelete="CASCADE")
    return sa.Column("run_id", sa.Text, key, primary_key=True)


def _number(name: str, *, nullable: bool = True) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        _number("created_at", nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("worker_id", sa.Text),
        sa.Column("planner", sa.Text),
        sa.Column("retries", sa.Integer, nullable=False),
        sa.Column("redeliveries", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("timeout_s", sa.Float, nullable=False),
        _number("queued_at"),
        _number("started_at"),
        _number("ended_at"),
        _number("next_attempt_at"),
        _number("cancel_requested_at"),
        sa.Column("exit_code", sa.Integer),
        sa.Column("error", sa.Text),
        _number("log_lines", nullable=False),
        _number("log_size", nullable=False),
        sa.Column("truncated", sa.Boolean, nullable=False),
        _number("last_seq", nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("retry_of", sa.Text),
        sa.Column("workspace_from", sa.Text),
        sa.Column("project", sa.Text),
        sa.Column("type", sa.Text),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("request_hash", sa.Text),
        # Each log batch updates the row: with room on its page PostgreSQL leaves the indexes alone.
        postgresql_with={"fillfactor": 70},
    )
    op.create_index("runs_by_status", "runs", ["status", "run_id"])
    op.create_index("runs_by_user", "runs", ["user_id", "created_at", "run_id"])
    op.create_index("runs_by_age", "runs", ["created_at", "run_id"])
    has_key = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        "runs_by_idempotency_key",
        "runs",
        ["user_id", "idempotency_key"],
        unique=True,
        sqlite_where=has_key,
        postgresql_where=has_key,
    )


def _attempts_and_steps() -> None:
    op.create_table(
        "attempts",
        _run_id(),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("worker_id", sa.Text, nullable=False),
        _number("started_at", nullable=False),
        _number("ended_at"),
        sa.Column("outcome", sa.Text),
        sa.Column("error", sa.Text),
    )
    op.create_table(
        "steps",
        _run_id(),
        sa.Column("step_id", sa.Text, primary_key=True),
        sa.Column("idx", sa.Integer, nullable=False),
        sa.Column("tool", sa.Text, nullable=False),
        sa.Column("args", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        _number("started_at", nullable=False),
        _number("ended_at"),
        sa.Column("exit_code", sa.Integer),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
    )


def _log_lines() -> None:
    op.create_table(
        "log_lines",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("type", sa.Text, nullable=False),
        _number("ts", nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("level", sa.Text),
        sa.Column("stream", sa.Text),
        sa.Column("step", sa.Text),
        sa.Column("content", sa.Text),
        sa.Column("data", sa.Text),
    )


def _tokens_usage_projects() -> None:
    op.create_table(
        "tokens",
        sa.Column("token_id", sa.Text, primary_key=True),
        sa.Column("hash", sa.Text, nullable=False, unique=True),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        _number("created_at", nullable=False),
        _number("expires_at"),
        sa.Column("run_id", sa.Text),
        _number("revoked_at"),
    )
    op.create_table(
        "usage",
        _run_id(),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_table(
        "projects",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("config", sa.Text, nullable=False),
        _number("created_at", nullable=False),
        _number("updated_at", nullable=False),
    )


def upgrade() -> None:
    """Make every table."""
    _runs()
    _attempts_and_steps()
    _log_lines()
    _tokens_usage_projects()
