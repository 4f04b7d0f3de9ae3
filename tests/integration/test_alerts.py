"""Alerts are tested with what real processes export, not with what a test makes up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.stack import Stack, shell, wait_for

MONITORING = Path(__file__).resolve().parents[2] / "monitoring"
TESTS: list[dict[str, Any]] = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
GROUPS: list[dict[str, Any]] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
SCRAPED = {"instance", "job", "pod", "namespace"}
"""Labels that Prometheus adds."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, set[str]]]]:
    """What an API and a worker show: by process, the series' names and their labels."""
    folder = tmp_path_factory.mktemp("alerts")
    stack = Stack(folder, f"sqlite:///{folder / 'tailrun.db'}", RETRY_BASE_S="0.1")
    try:
        for command in ("exit 1", "true"):
            stack.wait_end(stack.submit(shell(command)))
        stack.wait_end(stack.submit(tool_that_is_not_there()))
        wait_for(lambda: "tailrun_ready" in api(stack), "the API's own state")
        yield {"api": shown(api(stack)), "worker": shown(stack.workers[0].get("/metrics").text)}
    finally:
        stack.close()


def tool_that_is_not_there() -> dict[str, Any]:
    return {"tool": "shell", "args": {"command": "kill -9 $PPID"}}


def api(stack: Stack) -> str:
    return stack.http.get("/metrics").text


def shown(text: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("name", [test["name"] for test in TESTS])
def test_the_input_of_an_alert_s_test_is_what_a_process_exports(
    name: str, exported: dict[str, dict[str, set[str]]]
) -> None:
    """Of one process each series, with those labels; what has not happened here yet has no series."""
    [test] = [test for test in TESTS if test["name"] == name]
    assert test["input_series"], "an alert that is tested with nothing shows nothing"
    both = exported["api"] | exported["worker"]
    for given in test["input_series"]:
        series, _, labels = given["series"].partition("{")
        if series in both:
            named = set(re.findall(r"(\w+)=", labels)) - SCRAPED
            assert named <= both[series], given["series"]
        else:
            assert series in UNSEEN, f"neither process exports {series}"


UNSEEN = {
    "tailrun_redeliveries_total",
    "tailrun_storage_errors_total",
    "tailrun_workspace_bytes",
    "tailrun_webhooks_total",
    "tailrun_periodic_errors_total",
}
"""Needs a death, a fault, an hour or an address of somebody else's."""


def test_an_alert_on_what_is_missing_asks_for_what_one_kind_of_process_exports(
    exported: dict[str, dict[str, set[str]]],
) -> None:
    """Else the others, which export it as 0, would keep it silent for ever."""
    rules = [rule for group in GROUPS for rule in group["rules"]]
    asked = [name for rule in rules for name in re.findall(r"absent\((\w+)", rule["expr"])]
    assert asked == ["tailrun_workers"]
    assert [kind for kind in exported if asked[0] in exported[kind]] == ["api"]


def test_no_process_exports_what_only_another_knows(exported: dict[str, dict[str, set[str]]]) -> None:
    shared = {name for name in exported["api"].keys() & exported["worker"].keys() if "tailrun" in name}
    assert shared <= {
        *("tailrun_redeliveries_total", "tailrun_redeliveries_created"),
        *(f"tailrun_log_{name}" for name in ("bytes_total", "bytes_created", "gaps_total", "gaps_created")),
        *(f"tailrun_{name}" for name in ("dead_letters_total", "storage_errors_total")),
    }
