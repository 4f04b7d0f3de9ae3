"""What was asked of an agent, within what its deployment allows: model, tools, budget, form of the result.

The API has checked it; here it is read once more without trust, for a row may be of another release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Self

from app.agent.budget import RunBudget
from app.config import AgentSettings
from app.core.models import ResourceRequest
from app.plan.steps import TOOLS

_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class AgentOrder:
    """What one run asks for. `approve` None: as the deployment says; `tools` are of the catalogue."""

    model: str | None = None
    instructions: str = ""
    tools: tuple[str, ...] = tuple(TOOLS)
    approve: tuple[str, ...] | None = None
    budget: RunBudget = field(default_factory=RunBudget)
    result_schema: dict[str, Any] | None = None
    wants: ResourceRequest = field(default_factory=ResourceRequest)

    @classmethod
    def of(cls, asked: Mapping[str, Any] | None, settings: AgentSettings) -> Self:
        """Read what a run's row holds; its budget never passes the deployment's."""
        found = dict(asked or {})
        tools, approve = found.get("tools"), found.get("approve")
        schema = found.get("result_schema")
        return cls(
            model=_text(found.get("model")) or None,
            instructions=_text(found.get("instructions")),
            tools=tuple(TOOLS) if tools is None else tuple(name for name in TOOLS if name in tools),
            approve=tuple(map(str, approve)) if isinstance(approve, list) else None,
            budget=_budget(found.get("budget") or {}).within(ceiling(settings)),
            result_schema=schema if isinstance(schema, dict) else None,
            wants=ResourceRequest(
                image=_text(found.get("image")) or None, network=_text(found.get("network")) or None
            ),
        )


def ceiling(settings: AgentSettings) -> RunBudget:
    """Return what this deployment lets any run take."""
    return RunBudget(
        cost=None if settings.budget_usd is None else _micro(settings.budget_usd),
        tokens=settings.budget_tokens,
        calls=settings.max_calls,
        tool_calls=settings.max_tool_calls,
    )


def _budget(asked: Mapping[str, Any]) -> RunBudget:
    return RunBudget(
        cost=_micro(asked.get("usd")),
        tokens=_count(asked.get("tokens")),
        calls=_count(asked.get("calls")),
        tool_calls=_count(asked.get("tool_calls")),
    )


def _micro(dollars: Any) -> int | None:
    """Return millionths of a dollar, rounded down; what can't be read as a number is nothing at all."""
    if dollars is None:
        return None
    try:
        return max(0, int(Decimal(str(dollars)) * _MICRO))
    except (InvalidOperation, ValueError, OverflowError):
        return 0


def _count(value: Any) -> int | None:
    if value is None:
        return None
    return max(0, value) if type(value) is int else 0


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
