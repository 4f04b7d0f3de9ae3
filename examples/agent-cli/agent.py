"""A small agent with a command line, as Tailrun's typed tasks run it.

    python agent.py seed-db [--reset]
    python agent.py task-context import-excel FILE [--main-tab SHEET] [--custom-structure]
    python agent.py agent run --input TEXT [--parallel-workers N] [--pace SECONDS]
    python agent.py operation --app-signature NAME --operation-request-json JSON

It knows nothing of Tailrun: it prints lines, writes files, and ends with an exit code. What it
needs of the place where it runs comes in by the environment: DB_CONN, the database
(`sqlite:///file`), or PROJECT_DATA, the folder that holds it as `agent.db`; and TAILRUN_WORKSPACE,
the folder for its files. Without them it uses the folder it is started in.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean
from typing import Any

Row = tuple[str, str, float]
"""Attribute, quarter, value."""

REGIONS = ("north", "south", "west")
QUARTERS = ("Q1", "Q2", "Q3", "Q4")
ATTRIBUTES = ("MB revenue", "MB margin", "MB churn", "MB orders")
EXIT_USAGE = 2
EXIT_NO_LIBRARY = 3


class Refused(Exception):
    """Ends the program with a message and exit code 2."""


def say(text: str) -> None:
    """Print a line in one piece: lines of several processes must not run into each other."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def folder() -> Path:
    """Return where files go."""
    return Path(os.environ.get("TAILRUN_WORKSPACE", "."))


def connect() -> sqlite3.Connection:
    """Open the database, and make its table."""
    shared = Path(os.environ.get("PROJECT_DATA", folder()))
    conn = os.environ.get("DB_CONN", f"sqlite:///{shared / 'agent.db'}")
    if not conn.startswith("sqlite:///"):
        raise Refused("this example keeps its rows in SQLite: DB_CONN must be sqlite:///FILE")
    db = sqlite3.connect(conn.removeprefix("sqlite:///"), timeout=30)
    db.execute("CREATE TABLE IF NOT EXISTS attributes (name TEXT, quarter TEXT, value REAL)")
    return db


def sample() -> list[Row]:
    """Return the rows that a fresh database holds; always the same ones."""
    return [
        (name, quarter, round(100 + 17.5 * i + 9.25 * j + 3.5 * k, 2))
        for i, name in enumerate(ATTRIBUTES)
        for j, quarter in enumerate(QUARTERS)
        for k, _ in enumerate(REGIONS)
    ]


def insert(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Add rows, all or none."""
    with db:
        db.executemany("INSERT INTO attributes VALUES (?, ?, ?)", rows)


def seed(args: argparse.Namespace) -> None:
    """Fill the database with its first rows."""
    db = connect()
    if args.reset:
        with db:
            gone = db.execute("DELETE FROM attributes").rowcount
        say(f"reset: {gone} rows removed")
    there = db.execute("SELECT count(*) FROM attributes").fetchone()[0]
    if there:
        say(f"{there} rows are there already; --reset begins anew")
        return
    rows = sample()
    insert(db, rows)
    say(f"seeded {len(rows)} rows of {len(ATTRIBUTES)} attributes")


def import_excel(args: argparse.Namespace) -> None:
    """Add the rows of a sheet."""
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        print("import-excel needs openpyxl: pip install openpyxl (or tailrun[agent-cli])", file=sys.stderr)
        sys.exit(EXIT_NO_LIBRARY)
    from zipfile import BadZipFile

    say(f"reading {args.file_path}")
    try:
        book = load_workbook(args.file_path, read_only=True, data_only=True)
    except (OSError, BadZipFile, InvalidFileException, KeyError) as error:
        raise Refused(f"{args.file_path} can't be read as .xlsx: {error}") from error
    name = args.main_tab or book.sheetnames[0]
    if name not in book.sheetnames:
        raise Refused(f"there is no sheet {name!r}; the file has {', '.join(book.sheetnames)}")
    lines = book[name].iter_rows(values_only=True)
    heads = [str(head).strip() for head in next(lines, ()) if head is not None]
    rows = list((wide if args.custom_structure else narrow)(heads, lines))
    for done in range(0, len(rows), 100):
        say(f"{min(done + 100, len(rows))} of {len(rows)} values read")
    insert(connect(), rows)
    say(f"imported {len(rows)} values of sheet {name!r}")


def narrow(heads: Sequence[str], lines: Iterator[tuple[Any, ...]]) -> Iterator[Row]:
    """Read the columns attribute, quarter, value."""
    places = {head.lower(): at for at, head in enumerate(heads)}
    missing = [head for head in ("attribute", "quarter", "value") if head not in places]
    if missing:
        raise Refused(f"column {missing[0]!r} is missing; other columns are read with --custom-structure")
    for line in lines:
        name, quarter, value = (line[places[head]] for head in ("attribute", "quarter", "value"))
        if isinstance(value, (int, float)):
            yield str(name), str(quarter), float(value)


def wide(heads: Sequence[str], lines: Iterator[tuple[Any, ...]]) -> Iterator[Row]:
    """Read whatever columns there are: the first one names the attribute, each number is a value."""
    for line in lines:
        for head, value in zip(heads[1:], line[1:], strict=False):
            if isinstance(value, (int, float)):
                yield str(line[0]), head, float(value)


def run_agent(args: argparse.Namespace) -> None:
    """Analyse the rows, several workers at a time, and write a report."""
    say(f"input: {args.input}")
    rows = connect().execute("SELECT name, quarter, value FROM attributes").fetchall()
    if not rows:
        say("the database is empty: the sample rows are used")
        rows = sample()
    quarters = set(re.findall(r"\bQ[1-4]\b", args.input)) or set(QUARTERS)
    chosen = [row for row in rows if row[1] in quarters] or rows
    names = sorted({name for name, _, _ in chosen})
    say(f"{len(chosen)} rows of {len(names)} attributes, {args.parallel_workers} workers")
    found: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor(args.parallel_workers) as pool:
        asked = {
            pool.submit(analyse, name, [v for n, _, v in chosen if n == name], args.pace): name
            for name in names
        }
        for done in as_completed(asked):
            found[asked[done]] = done.result()
            say(f"[{len(found)}/{len(names)}] {asked[done]}: {found[asked[done]]}")
    report(args.input, {name: found[name] for name in names})


def analyse(name: str, values: Sequence[float], pace: float) -> dict[str, float]:
    """Work on one attribute; in a worker process."""
    for done, _ in enumerate(values, 1):
        if pace:
            time.sleep(pace)
            say(f"worker {os.getpid()}: {name}, {done} of {len(values)} values")
    figures = {"count": len(values), "mean": mean(values), "min": min(values), "max": max(values)}
    return {key: round(figure, 2) for key, figure in figures.items()}


def report(question: str, found: dict[str, dict[str, float]]) -> None:
    """Write what was found, for people and for programs."""
    (folder() / "report.json").write_text(
        json.dumps({"input": question, "attributes": found}, indent=2) + "\n"
    )
    with (folder() / "report.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["attribute", "count", "mean", "min", "max"])
        table.writerows([name, *figures.values()] for name, figures in found.items())
    say(f"report: {len(found)} attributes in report.json and report.csv")


def operate(args: argparse.Namespace) -> None:
    """Show what an operation was asked for; a program of your own does something with it."""
    try:
        request = json.loads(args.operation_request_json)
    except ValueError as error:
        raise Refused(f"the request is no JSON: {error}") from error
    say(f"operation of {args.app_signature!r}")
    for name, value in request.items() if isinstance(request, dict) else ():
        say(f"{name}: {json.dumps(value, ensure_ascii=False)}")
    asked = {"app_signature": args.app_signature, "request": request}
    (folder() / "operation.json").write_text(json.dumps(asked, indent=2) + "\n")
    say("request: in operation.json; OPERATION_TYPE names a task type of yours that carries operations out")


def workers(text: str) -> int:
    """Read a number of workers."""
    number = int(text)
    if not 1 <= number <= 64:
        raise argparse.ArgumentTypeError("1 to 64")
    return number


def parser() -> argparse.ArgumentParser:
    """Make the command line."""
    top = argparse.ArgumentParser(prog="agent.py", description="A small agent.", allow_abbrev=False)
    kinds = top.add_subparsers(required=True, metavar="TYPE")
    seeding = kinds.add_parser("seed-db", help="fill the database with its first rows")
    seeding.add_argument("--reset", action="store_true", help="remove what is there")
    seeding.set_defaults(run=seed)
    context = kinds.add_parser("task-context", help="bring in what the agent works on")
    importing = context.add_subparsers(required=True, metavar="COMMAND").add_parser("import-excel")
    importing.add_argument("file_path", help="the .xlsx")
    importing.add_argument("--main-tab", help="the sheet; left out, the first one")
    importing.add_argument("--custom-structure", action="store_true", help="any columns will do")
    importing.set_defaults(run=import_excel)
    agent = kinds.add_parser("agent", help="let the agent work")
    running = agent.add_subparsers(required=True, metavar="COMMAND").add_parser("run")
    running.add_argument("--input", required=True, help="what to find out")
    running.add_argument("--parallel-workers", type=workers, default=1, help="how many share the work")
    running.add_argument("--pace", type=float, default=0, help="seconds that each value takes")
    running.set_defaults(run=run_agent)
    operating = kinds.add_parser("operation", help="show what an operation asks for")
    operating.add_argument("--app-signature", required=True, help="who asks")
    operating.add_argument("--operation-request-json", required=True, help="what for, as JSON")
    operating.set_defaults(run=operate)
    return top


def main() -> int:
    """Run a command; return the exit code."""
    args = parser().parse_args()
    try:
        args.run(args)
    except (Refused, sqlite3.Error) as error:
        print(f"agent.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main())
