"""The tools as a model sees them, and what its calls mean as steps.

Schemas are those of the catalogue, made flat: many servers refuse `$ref`, unions and patterns, and a
model reads short schemas better. What they leave out is checked all the same when a call becomes a
step, and the model is told the mistake in the words that a POST would get. Image, limits, network and
environment are in no schema: a model can't ask for more than its run was given.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

from app.core.errors import Unprocessable
from app.core.models import Step
from app.llm.model import ToolCall, ToolSpec
from app.plan.steps import TOOLS, parse_steps

_KEPT = ("type", "description", "enum", "items", "minimum", "maximum", "default")


class UnusableCall(Exception):
    """A call that is not run; `message` is what the model is told."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@cache
def tool_specs(names: tuple[str, ...]) -> tuple[ToolSpec, ...]:
    """Return what a model is told of these tools, in the catalogue's order."""
    return tuple(_spec(name) for name in TOOLS if name in names)


def step_of(call: ToolCall, step_id: str, allowed: Collection[str]) -> Step:
    """Return the step that a call asks for.

    Raises:
        UnusableCall: it is no call of an allowed tool, or its arguments are wrong.
    """
    if call.problem:
        raise UnusableCall(call.problem)
    if call.name not in allowed:
        raise UnusableCall(f"There is no tool {call.name[:100]!r}. There are: {', '.join(allowed)}.")
    try:
        [step] = parse_steps([{"id": step_id, "tool": call.name, "args": call.arguments}])
    except Unprocessable as error:
        raise UnusableCall(f"Not run: {error.message.removeprefix(f'step 1 ({call.name}): ')}.") from error
    return step


def _spec(name: str) -> ToolSpec:
    model = TOOLS[name]
    arguments: Any = model.model_fields["args"].annotation
    return ToolSpec(name, (model.__doc__ or name).strip(), flat(arguments.model_json_schema()))


def flat(schema: dict[str, Any]) -> dict[str, Any]:
    """Reduce the schema of an object to fields that every server takes.

    Raises:
        ValueError: it holds something that can't be made flat.
    """
    properties = {name: _field(name, each) for name, each in schema.get("properties", {}).items()}
    required = [name for name in schema.get("required", ()) if name in properties]
    return {
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _field(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    if "type" not in schema and "const" in schema:
        schema = {**schema, "type": "string", "enum": [schema["const"]]}
    if not isinstance(schema.get("type"), str) or schema["type"] == "object":
        raise ValueError(f"the field {name} has no plain type: {schema}")
    kept = {key: schema[key] for key in _KEPT if key in schema}
    if schema["type"] == "array":
        kept["items"] = _field(name, schema["items"])
    return kept
