"""Tools as models see them: flat schemas, nothing to widen a run with, and mistakes that are told."""

from __future__ import annotations

from typing import Any

import pytest

from app.agent.model_tools import UnusableCall, flat, step_of, tool_specs
from app.llm.model import ToolCall
from app.plan.steps import TOOLS

ALL = tuple(TOOLS)


def walk(schema: Any) -> list[str]:
    """Return every key of a schema, at any depth, but for the names of properties."""
    found: list[str] = []
    if isinstance(schema, dict):
        for key, value in schema.items():
            found.append(key)
            inner = value.values() if key == "properties" else [value]
            found += [name for each in inner for name in walk(each)]
    return found


@pytest.mark.parametrize("spec", tool_specs(ALL), ids=lambda spec: spec.name)
def test_a_schema_is_flat(spec: Any) -> None:
    assert spec.description
    assert spec.parameters["type"] == "object"
    assert spec.parameters["additionalProperties"] is False
    assert not set(walk(spec.parameters)) & {"$ref", "$defs", "oneOf", "anyOf", "allOf", "pattern", "title"}
    for field in spec.parameters["properties"].values():
        assert isinstance(field["type"], str)


def test_no_schema_lets_a_model_widen_its_run() -> None:
    names = {name for spec in tool_specs(ALL) for name in spec.parameters["properties"]}
    assert not names & {"network", "image", "env", "cpu", "memory", "timeout_s", "continue_on_error"}


def test_only_tools_that_are_allowed_are_told() -> None:
    assert [spec.name for spec in tool_specs(("file_list", "code"))] == ["code", "file_list"]


def test_what_is_not_flat_is_found() -> None:
    with pytest.raises(ValueError, match="no plain type"):
        flat({"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}})


def test_a_call_becomes_a_step() -> None:
    step = step_of(ToolCall("a1", "file_list", "{}", {"prefix": "in/"}), "c1-0", ALL)
    assert (step.id, step.tool, step.args) == ("c1-0", "file_list", {"prefix": "in/"})
    assert not step.wants


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (ToolCall("a", "file_read", "{", problem="The arguments are no JSON."), "no JSON"),
        (ToolCall("a", "fly", "{}"), "There is no tool 'fly'. There are: code, shell"),
        (ToolCall("a", "shell", "{}", {}), "command"),
        (ToolCall("a", "file_read", "{}", {"path": 7}), "path"),
        (ToolCall("a", "file_read", "{}", {"path": "../x"}), "path"),
        (ToolCall("a", "file_read", "{}", {"path": "x", "network": "internet"}), "network"),
    ],
)
def test_an_unusable_call_is_told(call: ToolCall, told: str) -> None:
    with pytest.raises(UnusableCall) as unusable:
        step_of(call, "c1-0", ALL)
    assert told in unusable.value.message
    assert "step 1" not in unusable.value.message


def test_a_tool_that_is_not_allowed_does_not_exist() -> None:
    with pytest.raises(UnusableCall, match="There is no tool 'shell'"):
        step_of(ToolCall("a", "shell", "{}", {"command": "ls"}), "c1-0", ("file_read",))
