"""A database with much history and a long backlog, filled by the database itself: a million runs in a minute.

The statistics are those of a quieter time: PostgreSQL analyzes the tables while they are nearly empty, and
autovacuum is off from then on, so that nothing puts them right. Ids sort as the runs were made.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from app.db.engine import Database

NOW = 1_790_000_000_000_000
SECOND = 1_000_000
WORKERS = 20
"""The running runs belong to `w-0` … `w-19`."""
USERS = 4
"""All runs belong to `ann` (every second one), `user-1`, `user-2`, `user-3`."""

_FILLED = (
    *("runs", "log_lines", "steps", "attempts", "webhooks", "tokens"),
    *("model_calls", "inbox", "approvals"),
)
_QUIET = 3
"""Runs of the quieter time, in which `user-3` had none."""


@dataclass(frozen=True, slots=True)
class Seed:
    """How many runs there are of each kind. Of the ended, 1 in 100 failed, 1 in 200 was cancelled."""

    ended: int
    queued: int
    running: int = 200
    held: int = 50
    lines: int = 0
    """Log lines of each ended run; if any, then it has a row in each table of a run's as well."""

    def numbers(self) -> dict[str, range]:
        """Return the numbers of the runs of each kind (see `run_id`)."""
        counts = {"ended": self.ended, "held": self.held, "running": self.running, "queued": self.queued}
        first, found = _QUIET + 1, dict[str, range]()
        for kind, count in counts.items():
            found[kind] = range(first, first + count)
            first += count
        return found

    def waiting(self) -> range:
        """Return the numbers of the runs that are queued."""
        return self.numbers()["queued"]


_NUMBERS = {
    "postgresql": "generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS numbers(n)",
    "sqlite": "(WITH RECURSIVE counted(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM counted"
    " WHERE n < :last) SELECT n FROM counted) AS numbers",
}
_ID = {"postgresql": "lpad(to_hex(n), 32, '0')", "sqlite": "printf('%032x', n)"}
_STATUS = {
    "ended": "CASE WHEN n % 100 = 7 THEN 'failed' WHEN n % 200 = 9 THEN 'cancelled' ELSE 'succeeded' END",
    "queued": "'queued'",
    "running": "'running'",
    "held": "'created'",
}
_WORKER = f"'w-' || CAST(n % {WORKERS} AS text)"
_RUNS = """INSERT INTO runs (run_id, user_id, kind, status, spec, created_at, attempt, worker_id, retries,
 redeliveries, max_attempts, timeout_s, queued_at, started_at, ended_at, next_attempt_at, log_lines, log_size,
 truncated, last_seq, labels, idempotency_key, request_hash)
 SELECT {id}, CASE WHEN n % 2 = 0 THEN 'ann' ELSE 'user-' || CAST(1 + n % 3 AS text) END, 'prompt', {status},
 '{{"prompt": "x", "planner": "smoke"}}', {at},
 {attempt}, {worker}, 0, 0, 3, 60.0, {queued_at}, {started_at}, {ended_at}, NULL,
 {lines}, {lines} * 40, false, {last_seq}, '{{}}',
 CASE WHEN n % 10 = 0 THEN 'key-' || CAST(n AS text) END, CASE WHEN n % 10 = 0 THEN 'hash' END
 FROM {numbers}"""
_LINES = """INSERT INTO log_lines (run_id, seq, type, ts, attempt, level, stream, step, content)
 SELECT {id}, {seq}, 'log', {at}, 1, 'info', 'stdout', 's1', 'a line' FROM {numbers}"""
_END = """INSERT INTO log_lines (run_id, seq, type, ts, attempt, data)
 SELECT {id}, {seq}, 'end', {at}, 1, '{{"status": "succeeded"}}' FROM {numbers}"""
_STEPS = """INSERT INTO steps (run_id, step_id, idx, tool, args, status, attempt, started_at)
 SELECT {id}, 's1', 0, 'shell', '{{}}', 'succeeded', 1, {at} FROM {numbers}"""
_ATTEMPTS = """INSERT INTO attempts (run_id, attempt, worker_id, started_at)
 SELECT {id}, 1, 'w-0', {at} FROM {numbers}"""

_WEBHOOKS = """INSERT INTO webhooks (run_id, url, created_at, attempts, delivered_at, tries)
 SELECT {id}, 'https://example.org', {at}, 1, {at}, '[]' FROM {numbers}"""
_TOKENS = """INSERT INTO tokens (token_id, hash, user_id, scope, name, created_at, expires_at)
 SELECT {id}, {id}, 'ann', 'stream', '', {at}, CAST(9000000000000000 AS bigint) FROM {numbers}"""
_CALLS = """INSERT INTO model_calls (run_id, n, agent, purpose, status, attempt, tries, model, dialect,
 request_hash, inbox_upto, reserved_tokens, reserved_u, sent_at, input_tokens, cached_tokens,
 cache_written_tokens, output_tokens, reasoning_tokens, estimated)
 SELECT {id}, 1, '', 'act', 'sent', 0, 0, 'm', 'chat', 'h', 0, 1, 1, {at}, 0, 0, 0, 0, 0, false
 FROM {numbers}"""
_INBOX = """INSERT INTO inbox (run_id, k, content, mode, "by", created_at, idempotency_key)
 SELECT {id}, 1, 'hello', 'next', 'ann', {at}, 'k' FROM {numbers}"""
_APPROVALS = """INSERT INTO approvals (run_id, step_id, args_sha256, rule, asked_at)
 SELECT {id}, 's1', 'hash', 'auto', {at} FROM {numbers}"""


async def seed(db: Database, seed: Seed) -> None:
    """Fill the empty database."""
    await db.write(_quiet_time)
    for kind, numbers in seed.numbers().items():
        for begin in range(numbers.start, numbers.stop, 100_000):
            some = range(begin, min(begin + 100_000, numbers.stop))
            await db.write(lambda connection, some=some, kind=kind: _fill(connection, kind, some, seed.lines))


def run_id(number: int) -> str:
    """Return the id of the `number`-th run."""
    return f"{number:032x}"


def made_at(number: int) -> int:
    """Return when it was made, queued, and ended: a thousand a second, as busy as it gets."""
    return NOW - 86_400 * SECOND + number * 1000


def _quiet_time(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        for table in _FILLED:
            connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)"))
    _fill(connection, "ended", range(1, _QUIET + 1), 2)
    if connection.dialect.name == "postgresql":
        connection.execute(text("ANALYZE"))


def _fill(connection: Connection, kind: str, numbers: range, lines: int) -> None:
    dialect, over = connection.dialect.name, kind == "ended"
    begun = over or kind == "running"
    at = f"({made_at(0)} + n * 1000)"
    parts = {"id": _ID[dialect], "numbers": _NUMBERS[dialect], "at": at}
    values = {
        "status": _STATUS[kind],
        "attempt": int(begun),
        "worker": _WORKER if begun else "NULL",
        "queued_at": "NULL" if kind == "held" else at,
        "started_at": at if begun else "NULL",
        "ended_at": at if over else "NULL",
        "lines": lines if over else 0,
        "last_seq": lines + 1 if over else 2,
    }
    statements = [_RUNS.format(**parts, **values)]
    if begun:
        statements.append(_ATTEMPTS.format(**parts))
    if over and lines:
        statements += [_LINES.format(**parts, seq=seq) for seq in range(1, lines + 1)]
        statements += [_END.format(**parts, seq=lines + 1)]
        statements += [
            more.format(**parts) for more in (_STEPS, _WEBHOOKS, _TOKENS, _CALLS, _INBOX, _APPROVALS)
        ]
    for statement in statements:
        connection.execute(text(statement), {"first": numbers.start, "last": numbers.stop - 1})
