"""Fails when a setting, route, metric, Redis key or make target is not in the documents, or only there."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase
from pydantic_core import PydanticUndefined
from starlette.routing import WebSocketRoute

from app.config import Settings
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


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_a_setting_has_a_row_with_its_default_and_a_meaning(name: str) -> None:
    """docs/configuration.md holds every setting with the default that the code has."""
    field = Settings.model_fields[name]
    assert field.default is not PydanticUndefined
    default, meaning = rows("configuration.md")[name.upper()]
    assert default == written(field.default)
    assert len(meaning) > 8


def test_no_setting_is_documented_that_does_not_exist() -> None:
    """Nobody sets what nothing reads."""
    assert rows("configuration.md").keys() - {name.upper() for name in Settings.model_fields} == set()


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


@pytest.mark.parametrize("document", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """A relative link names a file of this repository."""
    text = document.read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in t]
    assert [target for target in targets if not (document.parent / target).exists()] == []


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
