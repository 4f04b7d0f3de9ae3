"""The tools that an agent has beside those of the catalogue, and what a call of any tool is taken for.

    plan      what it means to do: an event that pages show
    ask_user  a question; the run waits for the answer
    finish    the end, with the result

They start nothing and take no file, so they are done by the loop itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from app.agent.model_tools import UnusableCall, step_of, tool_specs
from app.agent.order import AgentOrder
from app.agent.rows import FINISH, UNUSABLE
from app.core.models import StepRecord, StepStatus
from app.llm.model import ToolCall, ToolSpec

PLAN, ASK_USER = "plan", "ask_user"
LOOP_TOOLS = frozenset({PLAN, ASK_USER, FINISH})
_MOST_ITEMS, _MOST_CHARS = 50, 500
_ONE = {"type": "string"}
_PLAN = ToolSpec(
    PLAN,
    "Say what you are going to do, step by step; whoever watches sees it. Call it again when it changes.",
    {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": _ONE, "description": "The steps, in their order."},
            "done": {"type": "integer", "description": "How many of them are done."},
        },
        "required": ["items"],
        "additionalProperties": False,
    },
)
_ASK = ToolSpec(
    ASK_USER,
    "Ask the user, and wait for the answer, which may take hours. Only where you can't go on without it.",
    {
        "type": "object",
        "properties": {"question": _ONE},
        "required": ["question"],
        "additionalProperties": False,
    },
)
_RESULT = {"type": "string", "description": "The answer to the user."}


def specs_of(order: AgentOrder) -> tuple[ToolSpec, ...]:
    """Return all tools of a run as its model is told of them."""
    finish = {
        "type": "object",
        "properties": {"result": order.result_schema or _RESULT},
        "required": ["result"],
        "additionalProperties": False,
    }
    return (*tool_specs(order.tools), _PLAN, _ASK, ToolSpec(FINISH, "End the task with its result.", finish))


def proposed_step(call: ToolCall, names: Collection[str], record: StepRecord) -> StepRecord:
    """Return the record of a call as its reply is committed: proposed, or refused with what is wrong."""
    try:
        if call.name in LOOP_TOOLS and call.name in names:
            return replace(record, args=_checked(call))
        step = step_of(call, record.step_id, names)
    except UnusableCall as error:
        return replace(
            record,
            status=StepStatus.REFUSED,
            policy=UNUSABLE,
            for_model=error.message,
            ended_at=record.started_at,
        )
    return replace(record, args=step.args)


def plan_items(args: dict[str, Any]) -> dict[str, Any]:
    """Return what the event `plan` holds, within bounds."""
    items = [str(item)[:_MOST_CHARS] for item in args.get("items", ())[:_MOST_ITEMS]]
    done = args.get("done")
    return {"items": items, "done": min(max(0, done), len(items)) if type(done) is int else 0}


def _checked(call: ToolCall) -> dict[str, Any]:
    if call.problem:
        raise UnusableCall(call.problem)
    if call.name == FINISH and "result" not in call.arguments:
        raise UnusableCall("Not run: result is required.")
    if call.name == ASK_USER and not str(call.arguments.get("question") or "").strip():
        raise UnusableCall("Not run: question is required.")
    if call.name == PLAN and not isinstance(call.arguments.get("items"), list):
        raise UnusableCall("Not run: items must be a list of texts.")
    return call.arguments
