"""The tables as SQLAlchemy sees them; `migrations/` makes them (a test holds the two together).

Ids are text, times are microseconds since the epoch, JSON is text that orjson wrote.
`log_lines` has no foreign key: its writers lock the run's row first, and a check per line is expensive.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    text,
)

from app.db.row_codec import clean

metadata = MetaData()

OWNER = "user_id || ' ' || status"
IS_QUEUED, IS_RUNNING = "'' || status = 'queued'", "'' || status = 'running'"
IS_WAITING = "'' || status = 'waiting'"
"""An expression of an index; a query has to hold it word by word to be answered from that index.

PostgreSQL chooses among the indexes that can serve a question by statistics, and those may be of a quieter
time. Expressions that one index has for itself leave it no choice (see decision record 0024).
"""


class SafeText(TypeDecorator[str]):
    """Text that PostgreSQL takes: NUL and lone surrogates become U+FFFD on the way in."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Clean what is bound."""
        return None if value is None else clean(value)


def _run_id() -> Column[str]:
    return Column("run_id", SafeText, ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True)


def _partial_index(name: str, *columns: str, where: str, online: bool = False) -> Index:
    condition = text(where)
    return Index(
        *(name, *columns),
        sqlite_where=condition,
        postgresql_where=condition,
        postgresql_concurrently=online,
    )


runs = Table(
    "runs",
    metadata,
    Column("run_id", SafeText, primary_key=True),
    Column("user_id", SafeText, nullable=False),
    Column("kind", SafeText, nullable=False),
    Column("status", SafeText, nullable=False),
    Column("spec", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker_id", SafeText),
    Column("planner", SafeText),
    Column("retries", Integer, nullable=False),
    Column("redeliveries", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("timeout_s", Float, nullable=False),
    Column("queued_at", BigInteger),
    Column("started_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("next_attempt_at", BigInteger),
    Column("cancel_requested_at", BigInteger),
    Column("exit_code", Integer),
    Column("error", Text),
    Column("log_lines", BigInteger, nullable=False),
    Column("log_size", BigInteger, nullable=False),
    Column("truncated", Boolean, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("labels", Text, nullable=False),
    Column("retry_of", SafeText),
    Column("workspace_from", SafeText),
    Column("project", SafeText),
    Column("type", SafeText),
    Column("idempotency_key", SafeText),
    Column("request_hash", SafeText),
    Column("log_stage", SafeText),
    Column("priority", SafeText, nullable=False, server_default="normal"),
    Column("retry_on", Text),
    Column("run_at", BigInteger),
    Column("webhook_url", SafeText),
    Column("agent", Text),
    Column("result", Text),
    Column("spent_u", BigInteger, nullable=False, server_default="0"),
    Column("spent_tokens", BigInteger, nullable=False, server_default="0"),
    Column("waiting_for", SafeText),
    # `log_lines`, `log_size`, `last_seq` and `truncated` are in no index and in no condition of one, for
    # each log batch changes them; nor do `spent_u` and `spent_tokens`, which each model call changes.
    # PostgreSQL leaves all indexes alone only as long as none has what changes.
    Index("runs_by_status", "status", "run_id"),
    _partial_index("runs_by_backlog", "user_id", where="status = 'queued'"),  # of releases before 0006
    _partial_index("runs_by_wait", "next_attempt_at", "queued_at", where=IS_QUEUED, online=True),
    _partial_index("runs_by_worker", "worker_id", "run_id", where=IS_RUNNING, online=True),
    _partial_index("runs_by_patience", "next_attempt_at", where=IS_WAITING, online=True),
    _partial_index("runs_by_end", "ended_at", where="ended_at IS NOT NULL"),
    Index("runs_by_user", "user_id", "created_at", "run_id"),
    Index("runs_by_owner", text(f"({OWNER})"), "created_at", "run_id", postgresql_concurrently=True),
    Index("runs_by_age", "created_at", "run_id"),
    Index("runs_by_status_and_age", "status", "created_at", "run_id", postgresql_concurrently=True),
    Index(
        "runs_by_idempotency_key",
        "user_id",
        "idempotency_key",
        unique=True,
        sqlite_where=text("idempotency_key IS NOT NULL"),
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    _partial_index("runs_by_log_stage", "log_stage", "ended_at", "run_id", where="ended_at IS NOT NULL"),
)

attempts = Table(
    "attempts",
    metadata,
    _run_id(),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("worker_id", SafeText, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("outcome", SafeText),
    Column("error", Text),
)

steps = Table(
    "steps",
    metadata,
    _run_id(),
    Column("step_id", SafeText, primary_key=True),
    Column("idx", Integer, nullable=False),
    Column("tool", SafeText, nullable=False),
    Column("args", Text, nullable=False),
    Column("status", SafeText, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("exit_code", Integer),
    Column("result", Text),
    Column("error", Text),
    Column("call", Integer),
    Column("call_id", SafeText),
    Column("policy", SafeText),
    Column("for_model", SafeText),
)

model_calls = Table(
    "model_calls",
    metadata,
    _run_id(),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("agent", SafeText, nullable=False),
    Column("purpose", SafeText, nullable=False),
    Column("status", SafeText, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("model", SafeText, nullable=False),
    Column("dialect", SafeText, nullable=False),
    Column("request_hash", SafeText, nullable=False),
    Column("inbox_upto", Integer, nullable=False),
    Column("reserved_tokens", BigInteger, nullable=False),
    Column("reserved_u", BigInteger),
    Column("sent_at", BigInteger, nullable=False),
    Column("first_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("finish", SafeText),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cache_written_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("cost_u", BigInteger),
    Column("response_id", SafeText),
    Column("error", Text),
    Column("view", Text),
    Column("prefix", Text),
    Column("reply", LargeBinary),
)

transcripts = Table(
    "transcripts",
    metadata,
    _run_id(),
    Column("content", LargeBinary, nullable=False),
)

inbox = Table(
    "inbox",
    metadata,
    _run_id(),
    Column("k", Integer, primary_key=True, autoincrement=False),
    Column("content", SafeText, nullable=False),
    Column("mode", SafeText, nullable=False),
    Column("by", SafeText, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("idempotency_key", SafeText),
    Index(
        "inbox_by_idempotency_key",
        "run_id",
        "idempotency_key",
        unique=True,
        sqlite_where=text("idempotency_key IS NOT NULL"),
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
)

approvals = Table(
    "approvals",
    metadata,
    _run_id(),
    Column("step_id", SafeText, primary_key=True),
    Column("args_sha256", SafeText, nullable=False),
    Column("rule", SafeText, nullable=False),
    Column("asked_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("decision", SafeText),
    Column("by", SafeText),
    Column("decided_at", BigInteger),
    Column("note", SafeText),
)

log_lines = Table(
    "log_lines",
    metadata,
    Column("run_id", SafeText, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("type", SafeText, nullable=False),
    Column("ts", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("level", SafeText),
    Column("stream", SafeText),
    Column("step", SafeText),
    Column("content", SafeText),
    Column("data", Text),
)

log_chunks = Table(
    "log_chunks",
    metadata,
    Column("run_id", SafeText, primary_key=True),
    Column("last_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("events", Integer, nullable=False),
    Column("lines", Integer, nullable=False),
    Column("levels", Integer, nullable=False),
    Column("streams", Integer, nullable=False),
    Column("marks", Boolean, nullable=False),
    Column("format", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("token_id", SafeText, primary_key=True),
    Column("hash", SafeText, nullable=False, unique=True),
    Column("user_id", SafeText, nullable=False),
    Column("scope", SafeText, nullable=False),
    Column("name", SafeText, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("run_id", SafeText),
    Column("revoked_at", BigInteger),
    Column("made_by", SafeText),
    _partial_index("tokens_by_expiry", "expires_at", where="expires_at IS NOT NULL", online=True),
)

usage = Table(
    "usage",
    metadata,
    _run_id(),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("data", Text, nullable=False),
)

schedules = Table(
    "schedules",
    metadata,
    Column("schedule_id", SafeText, primary_key=True),
    Column("user_id", SafeText, nullable=False),
    Column("cron", SafeText, nullable=False),
    Column("timezone", SafeText, nullable=False),
    Column("run", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("next_at", BigInteger),
    Column("last_at", BigInteger),
    Column("last_run_id", SafeText),
    Column("last_error", SafeText),
    Index("schedules_by_user", "user_id", "created_at", "schedule_id"),
    Index("schedules_by_time", "next_at"),
)

webhooks = Table(
    "webhooks",
    metadata,
    _run_id(),
    Column("url", SafeText, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("next_at", BigInteger),
    Column("attempts", Integer, nullable=False),
    Column("delivered_at", BigInteger),
    Column("tries", Text, nullable=False),
    _partial_index("webhooks_by_time", "next_at", where="next_at IS NOT NULL"),
)

projects = Table(
    "projects",
    metadata,
    Column("id", SafeText, primary_key=True),
    Column("config", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("secrets", Text),
)
