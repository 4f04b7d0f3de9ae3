"""The chart rendered for tests: by scenario of helm/tailrun/ci, or with further values."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

helm = pytest.importorskip("helm_python", reason="NOT TESTED: there is no Helm library for this machine")

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/tailrun"
SCENARIOS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
TOOLS = "agents-tools"

Object = dict[str, Any]


def values_of(scenario: str) -> Object:
    return yaml.safe_load((CHART / f"ci/{scenario}-values.yaml").read_text())


def merged(into: Object, values: Object) -> Object:
    found = dict(into)
    for name, value in values.items():
        both = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = merged(found[name], value) if both else value
    return found


class Rendered:
    """What the chart makes of values."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.notes = next(text for path, text in texts.items() if path.endswith("NOTES.txt"))
        self.objects: list[Object] = [
            each
            for path, text in sorted(texts.items())
            if path.endswith(".yaml")
            for each in yaml.safe_load_all(text)
            if each
        ]

    def all(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, name: str) -> Object:
        [found] = [each for each in self.all(kind) if each["metadata"]["name"] == name]
        return found

    def names(self) -> list[str]:
        return sorted(
            f"{e['kind']} {e['metadata'].get('namespace', '')}/{e['metadata']['name']}" for e in self.objects
        )

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Yield the pod template of everything that makes pods, by name."""
        for each in self.objects:
            if each["kind"] in {"Deployment", "StatefulSet", "Job"}:
                yield each["metadata"]["name"], each["spec"]["template"]

    def container(self, name: str) -> Object:
        """Return the first container of the Deployment `name`."""
        return self.one("Deployment", name)["spec"]["template"]["spec"]["containers"][0]


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def render(values: Object, *, name: str = "tailrun", namespace: str = "agents", **options: bool) -> Rendered:
    with helm.Chart.load(CHART) as chart:
        return Rendered(chart.render(values, name=name, namespace=namespace, **options))


@cache
def scenario(name: str) -> Rendered:
    """Render a scenario; the same object each time, so nobody may change it."""
    return render(values_of(name))


def changed(name: str, **values: Any) -> Rendered:
    """Render a scenario with other values."""
    return render(merged(values_of(name), values))
