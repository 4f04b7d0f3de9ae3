"""What an agent run may spend, and what it has: reserved before a call is made, never found out after it.

None is no limit of the run's own; 0 is nothing. A run may ask for less than the deployment's
ceiling, never for more. A call that was lost counts what was reserved for it, for it may be billed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

from app.llm.model import ModelRequest, TokenUsage
from app.llm.models_file import ModelConfig
from app.llm.prices import Prices, Reservation

_MICRO = 1_000_000


class BudgetSpent(Exception):
    """What is left of a budget does not do for the next step; `which` names the limit."""

    def __init__(self, which: str, message: str) -> None:
        super().__init__(message)
        self.which = which
        self.message = message


@dataclass(frozen=True, slots=True)
class RunBudget:
    """Limits of a run; `cost` is in millionths of a US dollar."""

    cost: int | None = None
    tokens: int | None = None
    calls: int | None = None
    tool_calls: int | None = None

    def within(self, ceiling: RunBudget) -> Self:
        """Return the smaller of each limit."""
        pairs = ((getattr(self, each.name), getattr(ceiling, each.name)) for each in fields(self))
        return type(self)(*(_smaller(mine, most) for mine, most in pairs))


@dataclass(frozen=True, slots=True)
class Spending:
    """What one call of the model took: the reservation until it has ended, then what was counted."""

    usage: TokenUsage
    cost: int | None = None


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a run and all its sub-agents have spent. `cost` counts the calls whose price is known."""

    tokens: int = 0
    cost: int = 0
    calls: int = 0
    tool_calls: int = 0

    @classmethod
    def of(cls, spent: Iterable[Spending], tool_calls: int) -> Self:
        """Sum up a run's calls."""
        known = list(spent)
        return cls(
            tokens=sum(each.usage.total for each in known),
            cost=sum(each.cost or 0 for each in known),
            calls=len(known),
            tool_calls=tool_calls,
        )

    def next_call(
        self, budget: RunBudget, prices: Prices, config: ModelConfig, request: ModelRequest
    ) -> Reservation:
        """Return what to reserve for the next call of the model; its output is as much as is left for.

        Raises:
            BudgetSpent: it would pass a limit.
        """
        if budget.calls is not None and self.calls >= budget.calls:
            raise BudgetSpent("calls", f"{self.calls} of {budget.calls} calls of the model were made.")
        left = _left(budget.tokens, self.tokens), _left(budget.cost, self.cost)
        found = prices.reserve(config, request, tokens_left=left[0], cost_left=left[1])
        if found is not None:
            return found
        if prices.reserve(config, request, tokens_left=left[0]) is None:
            said = f"{self.tokens} of {budget.tokens} tokens are spent, and the next call takes more."
            raise BudgetSpent("tokens", said)
        most = (budget.cost or 0) / _MICRO
        said = f"${self.cost / _MICRO:.6f} of ${most:.6f} are spent, and the next call costs more."
        raise BudgetSpent("usd", said)

    def next_tool(self, budget: RunBudget) -> None:
        """Hold the next call of a tool to the budget.

        Raises:
            BudgetSpent: there were as many as there may be.
        """
        if budget.tool_calls is not None and self.tool_calls >= budget.tool_calls:
            raise BudgetSpent(
                "tool_calls", f"{self.tool_calls} of {budget.tool_calls} calls of tools were made."
            )


def _smaller(mine: int | None, most: int | None) -> int | None:
    given = [each for each in (mine, most) if each is not None]
    return min(given) if given else None


def _left(limit: int | None, spent: int) -> int | None:
    return None if limit is None else max(0, limit - spent)
