"""Fails when documents and code differ: settings, routes, metrics, keys, targets, links, indexes, figures."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase
from pydantic_core import PydanticUndefined
from starlette.routing import WebSocketRoute

from app.config import VARIABLES, Settings
from app.core import telemetry
from app.core.events import EventType
from app.core.models import RunStatus
from app.main import create_app
from app.redis.keys import Keys
from tailrun.process.errors import ErrorCode

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def rows(document: str) -> dict[str, list[str]]:
    """Return a document's table rows by the name in backquotes in their first cell."""
    found: dict[str, list[str]] = {}
    for line in (DOCS / document).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        for name in re.findall(r"`([^`]+)`", cells[0]) if line.startswith("|") else []:
            found[name] = cells[1:]
    return found


def written(default: object) -> str:
    """Write a default as docs/configuration.md does."""
    if default is None:
        return "unset"
    text = str(int(default)) if isinstance(default, float) and default.is_integer() else str(default)
    return f"`{text}`" if text else "empty"


@pytest.mark.parametrize("name", list(VARIABLES))
def test_a_setting_has_a_row_with_its_default_and_a_meaning(name: str) -> None:
    """docs/configuration.md holds every setting with the default that the code has."""
    field = VARIABLES[name]
    assert field.default is not PydanticUndefined
    default, meaning = rows("configuration.md")[name]
    assert default == written(field.default)
    assert len(meaning) > 8


def test_no_setting_is_documented_that_does_not_exist() -> None:
    """Nobody sets what nothing reads."""
    assert rows("configuration.md").keys() - VARIABLES.keys() == set()


def routes() -> set[str]:
    """Return every route of the application as `METHOD /path`."""
    app = create_app(Settings())
    found = {
        f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods
    }
    return found | set(websockets(app.routes))


def websockets(candidates: Iterable[object]) -> Iterator[str]:
    """Yield the WebSocket routes, which OpenAPI leaves out, also those of included routers."""
    for route in candidates:
        if isinstance(route, WebSocketRoute):
            yield f"WS {route.path}"
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from websockets(included.routes)


def shape(route: str) -> str:
    """Reduce a route to method and path, whatever its parameters are called."""
    return re.sub(r"\{[^}]*\}", "{}", route)


def documented_routes() -> set[str]:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    return {shape(found) for found in re.findall(r"`((?:GET|POST|PUT|DELETE|WS) /[^`?\s]*)", text)}


def test_every_route_is_in_the_api_document() -> None:
    """docs/api.md names each route as `METHOD /path`."""
    documented = documented_routes()
    assert {"POST /agent/execute", "WS /v1/runs/{run_id}/stream"} <= routes()
    assert {route for route in routes() if shape(route) not in documented} == set()


def test_no_route_is_documented_that_does_not_exist() -> None:
    """Nobody calls what nothing answers."""
    framework = {"GET /openapi.json", "GET /docs"}
    assert documented_routes() - {shape(route) for route in routes()} - framework == set()


def metrics() -> set[str]:
    """Return the names under which Prometheus sees our metrics."""
    found: set[str] = set()
    for _, metric in inspect.getmembers(telemetry, lambda member: isinstance(member, MetricWrapperBase)):
        described = metric.describe()[0]
        found.add(described.name + ("_total" if described.type == "counter" else ""))
    return found


def test_metrics_and_their_document_agree() -> None:
    """docs/metrics.md has a row for each metric, under the name that a scrape shows, and no other."""
    documented = {name.partition("{")[0] for name in rows("metrics.md") if name.startswith("tailrun_")}
    assert metrics()
    assert documented == metrics()


def keys() -> set[str]:
    """Return every key of the code, with its parameters as `<name>`."""
    found: set[str] = set()
    for name, function in inspect.getmembers(Keys, inspect.isfunction):
        if not name.startswith("_"):
            parameters = [p for p in inspect.signature(function).parameters if p != "self"]
            found.add(function(Keys(), *[f"<{parameter}>" for parameter in parameters]))
    return found


def test_redis_keys_and_their_table_agree() -> None:
    """docs/architecture.md has a row for each key and channel, and for none that does not exist."""
    documented = {name for name in rows("architecture.md") if name.startswith(("jobs:", "agent:"))}
    assert keys()
    assert documented == keys()


@pytest.mark.parametrize("status", list(RunStatus))
def test_a_state_is_in_the_state_machine(status: RunStatus) -> None:
    """docs/state_machine.md names every state of a run."""
    assert re.search(rf"\b{status}\b", (DOCS / "state_machine.md").read_text(encoding="utf-8"))


def test_error_codes_and_their_table_agree() -> None:
    """docs/state_machine.md has a row for each error code, and says whether it is tried again."""
    table = rows("state_machine.md")
    assert {code for code in ErrorCode if code not in table} == set()
    assert {code for code in ErrorCode if table[code][-1].startswith("yes") is not code.retried} == {
        "worker_lost"
    }


@pytest.mark.parametrize("kind", list(EventType))
def test_an_event_type_is_in_the_streaming_document(kind: EventType) -> None:
    """docs/streaming.md names every type of event."""
    assert kind in rows("streaming.md")


MARKDOWN = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]


def anchors(document: Path) -> set[str]:
    """Return the names that GitHub gives to a document's headings."""
    text = re.sub(
        r"^ *```.*?^ *```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    headings = [re.sub(r"[`*]", "", heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """A relative link names a file of this repository, and a heading of it."""
    text = document.read_text(encoding="utf-8")
    targets = [
        t for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t and not t.startswith("mailto:")
    ]
    assert [target for target in targets if not leads_somewhere(document, target)] == []


def leads_somewhere(document: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = document.parent / path if path else document
    return file.exists() and (not anchor or file.suffix != ".md" or anchor in anchors(file))


def decision_rows() -> list[str]:
    """Return what the index of decisions has to hold: a row for each number up to the highest."""
    records = {int(path.name[:4]): path for path in sorted((DOCS / "decisions").glob("[0-9]*.md"))}
    found: list[str] = []
    for number in range(1, max(records) + 1):
        if path := records.get(number):
            title = path.read_text(encoding="utf-8").splitlines()[0].partition(" ")[2].partition(" ")[2]
            found.append(f"| [{number:04d}]({path.name}) | {title} |")
        else:
            found.append(f"| {number:04d} | not used |")
    return found


def test_the_index_of_decisions_is_whole() -> None:
    """Every record is in docs/decisions/README.md with its title; a number without a record is named."""
    text = (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[?\d{4}.*$", text, re.MULTILINE)
    expected = decision_rows()
    missing = "\n".join(row for row in expected if row not in listed)
    assert missing == "", f"add to docs/decisions/README.md:\n{missing}"
    assert listed == expected, "docs/decisions/README.md has these rows, in the order of their numbers"


@pytest.mark.parametrize(
    "record", sorted((DOCS / "decisions").glob("[0-9]*.md")), ids=lambda path: path.name[:4]
)
def test_a_decision_has_the_form_of_a_decision(record: Path) -> None:
    """`# NNNN Title`, its status, then sections of which three have the same names everywhere."""
    title, blank, status, *_ = record.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(rf"# {record.name[:4]} [^\s:.].*[^.]", title)
    assert blank == ""
    assert re.match(r"Status: (accepted|proposed|replaced by \[\d{4}\]\(\S+\)), \w+ \d{4}", status)
    assert {"Context", "Decision", "Alternatives"} <= set(
        re.findall(r"^## (.+)$", record.read_text(encoding="utf-8"), re.MULTILINE)
    )


def test_every_page_is_in_the_index_of_documents() -> None:
    """docs/README.md has a row for each page of docs/."""
    listed = set(
        re.findall(
            r"^\| \[[^\]]+\]\(([^)]+)\)", (DOCS / "README.md").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    pages = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert listed == pages | {"decisions/README.md"}


def test_tests_that_documents_name_exist() -> None:
    """What "proved by" names can be run."""
    source = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    functions = set(re.findall(r"def (test_\w+)", "".join(source.values())))
    named = {
        name
        for path in MARKDOWN
        for name in re.findall(r"\btest_\w+(?:\.py)?", path.read_text(encoding="utf-8"))
    }
    assert {name for name in named if name not in functions | source.keys()} == set()


FIGURES = [
    ("benchmarks-queue", r"\| api \| ([\d.]+) \|", "{} ms CPU a run (whole runs)"),
    ("benchmarks-queue", r"\| worker \| ([\d.]+) \|", "{} ms CPU a run"),
    ("benchmarks-queue", r"\| together \| \*\*([\d.]+)\*\*", "{} ms CPU a run in all"),
    ("benchmarks-queue", r"\| postgresql \| ([\d.]+) \|", "CPU: {} ms a small run"),
    ("benchmarks-queue", r"\| redis \| ([\d.]+) \|", "CPU: {} ms a run and"),
    ("benchmarks", r"\| idle api: CPU, RSS \| [\d.]+ %, (\d+) MB", "with 500 silent streams | {} MB;"),
    ("benchmarks", r"\| idle worker: CPU, RSS \| [\d.]+ %, (\d+) MB", "with 50 loud runs | {} MB;"),
    ("benchmarks", r"`shell`, `echo`\), p50 / p99 of 100 \| ([\d.]+)", "took {} ms (p50)"),
    ("benchmarks", r"`file_write`\), p50 / p99 of 200 \| ([\d.]+)", "`file_write` took {}."),
    ("benchmarks", r"whole runs on SQLite .* \| (\d+) /s", "{} small runs/s as measured against"),
    ("benchmarks", r"whole runs on PostgreSQL .* \| (\d+) /s", "against {} on PostgreSQL"),
    ("benchmarks-ingest", r"PostgreSQL \| 50 runs.*\| (\d+) / \d+ / \d+ \|", "MB; {} MB | idle, ingest |"),
    ("benchmarks-ingest", r"PostgreSQL \| 50 runs.*\| \d+ / \d+ / (\d+) \|", "took {} MB at the peak"),
    ("benchmarks-stream", r"\*\*Tailrun\*\*.*\| (\d+) \| [^|]*\|$", "{} MB | idle, streams"),
    ("benchmarks-stream", r"\*\*Tailrun\*\*,[^|]*\|[^|]*\| ([\d.]+) \|", "{} CPU s for 100,000 delivered"),
]
"""Figures that docs/scaling.md takes from a benchmark: the page, where it is there, how scaling.md has it."""


@pytest.mark.parametrize(("page", "pattern", "written_as"), FIGURES)
def test_scaling_has_the_figures_of_the_last_benchmark(page: str, pattern: str, written_as: str) -> None:
    """A benchmark that was measured anew changes docs/scaling.md too."""
    found = re.search(pattern, (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    text = " ".join((DOCS / "scaling.md").read_text(encoding="utf-8").split())
    assert written_as.format(found[1]) in text


def test_make_targets_in_documents_exist() -> None:
    """No document tells to type a make target that there is none of."""
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony
    named = {
        (path.name, target)
        for path in MARKDOWN
        for target in re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {(name, target) for name, target in named if target not in phony.group(1).split()} == set()
