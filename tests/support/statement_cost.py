"""What each statement reads, whoever sends it: rows on PostgreSQL, steps of its machine on SQLite.

Each statement is run once beside its real execution, and undone: PostgreSQL says in EXPLAIN ANALYZE how many
rows every scan looked at, also those that a filter removed; SQLite counts the instructions of the program
that it makes of a statement. Neither depends on how fast the machine is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event

_EVERY = 50
"""Instructions between two calls of SQLite's progress handler."""
_IN_MEMORY = {"CTE Scan", "Subquery Scan", "Function Scan", "Values Scan", "Result", "WorkTable Scan"}


@dataclass(frozen=True, slots=True)
class Cost:
    """One execution: `read` rows or instructions; `plan` as the database tells it."""

    statement: str
    read: int
    plan: str


@contextmanager
def measured() -> Iterator[list[Cost]]:
    """Collect the cost of every statement that SQLAlchemy sends meanwhile, in this process."""
    costs: list[Cost] = []

    def before(connection: Connection, _c: Any, statement: str, values: Any, _x: Any, many: bool) -> None:
        if statement.split(maxsplit=1)[0] in {"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"}:
            first = values[0] if many else values
            work = _on_postgres if connection.dialect.name == "postgresql" else _on_sqlite
            costs.append(work(connection, statement, first))

    event.listen(Engine, "before_cursor_execute", before)
    try:
        yield costs
    finally:
        event.remove(Engine, "before_cursor_execute", before)


def _on_postgres(connection: Connection, statement: str, values: Any) -> Cost:
    cursor = connection.connection.cursor()
    alone = connection.connection.dbapi_connection.autocommit  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    begin, undo = ("BEGIN", "ROLLBACK") if alone else ("SAVEPOINT cost", "ROLLBACK TO SAVEPOINT cost")
    cursor.execute(begin)
    cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}", values)
    found = cursor.fetchone()
    cursor.execute(undo)
    assert found
    plan = found[0][0]["Plan"]
    return Cost(statement, sum(map(_rows_read, _nodes(plan))), "\n".join(_told(plan)))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


def _rows_read(node: dict[str, Any]) -> int:
    if "Scan" not in node["Node Type"] or node["Node Type"] in _IN_MEMORY:
        return 0
    names = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    return round(node["Actual Loops"] * sum(node.get(name, 0) for name in names))


def _told(node: dict[str, Any], depth: int = 0) -> Iterator[str]:
    where = node.get("Index Name") or node.get("Relation Name") or ""
    yield f"{'  ' * depth}{node['Node Type']} {where} read {_rows_read(node)} {node.get('Index Cond', '')}"
    for below in node.get("Plans", ()):
        yield from _told(below, depth + 1)


def _on_sqlite(connection: Connection, statement: str, values: Any) -> Cost:
    raw: Any = connection.connection.dbapi_connection
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        return 0

    plan = "\n".join(row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", values))
    raw.execute("SAVEPOINT cost")
    raw.set_progress_handler(count, _EVERY)
    raw.execute(statement, values).fetchall()
    raw.set_progress_handler(None, 0)
    raw.execute("ROLLBACK TO cost")
    raw.execute("RELEASE cost")
    return Cost(statement, calls * _EVERY, plan)
