"""Alerts and dashboard speak of metrics that exist; each alert has a test, and a page of what to do."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from app.core import telemetry
from app.core.models import RunStatus
from tailrun.process.errors import ErrorCode

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "monitoring"


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def series() -> set[str]:
    """Return every name of a series that a scrape shows."""
    found: set[str] = set()
    for _, metric in inspect.getmembers(telemetry, lambda member: isinstance(member, MetricWrapperBase)):
        described = metric.describe()[0]
        parts = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
        found |= {described.name + part for part in parts[described.type]}
    return found


def unknown(expression: str) -> set[str]:
    named = set(re.findall(r"\btailrun_\w+", expression))
    assert named, expression
    return named - series()


def anchors(document: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", (ROOT / document).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", list(rules()))
def test_an_alert_is_on_metrics_that_exist_and_leads_to_its_page(name: str) -> None:
    rule = rules()[name]
    assert unknown(rule["expr"]) == set()
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"]["summary"]
    document, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == name.lower()
    assert anchor in anchors(document)


def test_each_alert_has_a_unit_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    fires = {check["alertname"] for check in checks if check.get("exp_alerts")}
    rests = {check["alertname"] for check in checks if not check.get("exp_alerts")}
    assert fires == rests == set(rules())


def test_values_of_labels_in_alerts_exist() -> None:
    """A code or a state that is renamed would silence its alert."""
    codes, states = {str(code) for code in ErrorCode}, {str(status) for status in RunStatus} | {"lost"}
    expressions = [rule["expr"] for rule in rules().values()]
    named = [found for text in expressions for found in re.findall(r'\b(code|status)=~?"([a-z_|]+)"', text)]
    assert {label for label, _ in named} == {"code", "status"}
    for label, values in named:
        assert set(values.split("|")) <= (codes if label == "code" else states)


def panels() -> Iterator[dict[str, Any]]:
    yield from json.loads((FOLDER / "dashboard.json").read_text())["panels"]


def test_the_dashboard_shows_metrics_that_exist() -> None:
    targets = [target for panel in panels() for target in panel.get("targets", [])]
    assert len(targets) > 20
    assert {target["expr"]: unknown(target["expr"]) for target in targets if unknown(target["expr"])} == {}
    assert {panel["title"] for panel in panels() if panel["type"] == "row"} >= {"Queue", "Workers", "Runs"}
    assert len({panel["id"] for panel in panels()}) == len(list(panels()))


@pytest.mark.deep
def test_promtool_proves_the_alerts() -> None:
    """Prometheus' own tool reads the rules and runs their tests."""
    assert shutil.which("promtool"), "make test-deep installs it (package prometheus)"
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
