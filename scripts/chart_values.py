"""The chart's values.yaml is the only description of its values: here its comments are read.

A comment directly over a key describes it. A line `@schema {…}` in it is JSON Schema that narrows
what the default already says: a text, a number, a switch, a list, a map of anything (`{}`), or an
object with just the keys that stand there.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

_KEY = re.compile(r"^(\s*)([\w./-]+):(\s|$)")
_OPEN = frozenset(
    {
        *("config", "secrets.references", "secrets.values", "tools.quota", "tools.profiles"),
        *("tools.limits.default", "tools.limits.defaultRequest", "tools.limits.max"),
        "networkPolicy.dnsNamespaceLabels",
        "monitoring.dashboards.labels",
    }
)
"""Maps whose keys are not ours, though some have a default."""


@dataclass
class Value:
    """One key of values.yaml."""

    path: str
    default: Any
    text: str = ""
    narrowed: dict[str, Any] = field(default_factory=dict)

    @property
    def leaf(self) -> bool:
        """Whether people set it as a whole: everything but objects with keys of ours."""
        return not isinstance(self.default, dict) or not self.default or is_open(self.path)


def is_open(path: str) -> bool:
    """Whether a map takes any keys."""
    return path in _OPEN or path.endswith("resources")


def read(source: str) -> list[Value]:
    """Return all values in the order of the file, objects before what is in them."""
    defaults = yaml.safe_load(source)
    found: list[Value] = []
    stack: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in source.splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
            continue
        key = _KEY.match(line)
        if key is not None:
            indent, name = len(key.group(1)), key.group(2)
            while stack and stack[-1][0] >= indent:
                stack.pop()
            path = [*(each for _, each in stack), name]
            known, default = _look_up(defaults, path)
            if known and not any(is_open(".".join(path[:depth])) for depth in range(1, len(path))):
                found.append(_value(".".join(path), default, comment))
            stack.append((indent, name))
        comment = []
    return found


def _look_up(tree: Any, path: list[str]) -> tuple[bool, Any]:
    for name in path:
        if not isinstance(tree, dict) or name not in tree:
            return False, None
        tree = tree[name]
    return True, tree


def _value(path: str, default: Any, comment: list[str]) -> Value:
    narrowed = next((line for line in comment if line.startswith("@schema ")), "@schema {}")
    text = " ".join(line for line in comment if not line.startswith("@schema "))
    return Value(path, default, text, json.loads(narrowed.removeprefix("@schema ")))


# -- values.schema.json ---------------------------------------------------------------------


def schema(values: list[Value], settings: dict[str, list[str]]) -> dict[str, Any]:
    """Return the JSON Schema of the values.

    `settings` names, for the maps `config` and `secrets.values`, what may stand in them: a misspelt
    setting is refused at the installation, and not found out in an incident.
    """
    root: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft-07/schema#",
        "title": "Values of the chart tailrun",
        **_object(),
    }
    # Helm gives every chart these two.
    root["properties"] = {"global": {"type": "object"}, "enabled": {"type": "boolean"}}
    places: dict[str, dict[str, Any]] = {"": root}
    for value in values:
        parent, _, name = value.path.rpartition(".")
        if value.path not in settings and parent not in places:
            parent, name = _longest(places, value.path)
        here = _schema_of(value)
        if value.path in settings:
            here["propertyNames"] = {"enum": settings[value.path]}
        places[parent]["properties"][name] = here
        if not value.leaf:
            places[value.path] = here
    return root


def _longest(places: dict[str, dict[str, Any]], path: str) -> tuple[str, str]:
    parent = max((each for each in places if path.startswith(f"{each}.")), key=len)
    return parent, path.removeprefix(f"{parent}.")


def _object() -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": {}}


def _schema_of(value: Value) -> dict[str, Any]:
    if not value.leaf:
        return _object()
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    found: dict[str, Any] = {"type": kinds[type(value.default)]}
    if value.text:
        found["description"] = value.text
    if value.path in {"config", "secrets.values"}:
        found["additionalProperties"] = {"type": ["string", "number", "boolean"]}
    if value.path == "secrets.references":
        names = {name: {"type": "string", "minLength": 1} for name in ("name", "key")}
        found["additionalProperties"] = {**_object(), "properties": names, "required": ["name", "key"]}
    return {**found, **value.narrowed}


# -- README.md ------------------------------------------------------------------------------


def table(values: list[Value]) -> str:
    """Return the values as a table, with a heading for each of the top level."""
    lines: list[str] = []
    section = ""
    for value in values:
        top = value.path.partition(".")[0]
        if top != section:
            section = top
            about = f"\n{value.text}.\n" if value.text and not value.leaf else ""
            lines += ["", f"### {top}", about, "| value | default | meaning |", "|---|---|---|"]
        if value.leaf:
            text = value.text.replace("|", "\\|")
            lines.append(f"| `{value.path}` | {_written(value.default)} | {text} |")
    return "\n".join(lines).strip() + "\n"


def _written(default: Any) -> str:
    if default in ("", None):
        return "empty"
    text = default if isinstance(default, str) else json.dumps(default)
    return f"`{text}`"
