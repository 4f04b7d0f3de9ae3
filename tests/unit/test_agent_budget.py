"""Budgets reserve before they spend: nothing passes a limit, 0 is nothing, unknown prices are no cost."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.agent.budget import BudgetSpent, Ledger, RunBudget, Spending
from app.llm.model import ModelRequest, TokenUsage, UserTurn
from app.llm.models_file import ModelConfig
from app.llm.prices import Price, Prices

CONFIG = ModelConfig(name="quick", model="some", max_output_tokens=1_000)
PRICES = Prices({"quick": Price(input=Decimal(1), output=Decimal(10))})
UNKNOWN = Prices({})
HI = ModelRequest("", (UserTurn("hello"),))


def test_a_run_asks_for_less_never_for_more() -> None:
    ceiling = RunBudget(cost=None, tokens=100, calls=50, tool_calls=0)
    assert RunBudget(cost=5, tokens=200, calls=0).within(ceiling) == RunBudget(5, 100, 0, 0)
    assert RunBudget().within(ceiling) == ceiling


@pytest.mark.parametrize(
    ("budget", "which"),
    [(RunBudget(cost=0), "usd"), (RunBudget(tokens=0), "tokens"), (RunBudget(calls=0), "calls")],
)
def test_nothing_is_nothing(budget: RunBudget, which: str) -> None:
    with pytest.raises(BudgetSpent) as spent:
        Ledger().next_call(budget, PRICES, CONFIG, HI)
    assert spent.value.which == which
    with pytest.raises(BudgetSpent, match="calls of tools"):
        Ledger().next_tool(RunBudget(tool_calls=0))


def test_no_limit_is_no_limit() -> None:
    much = Ledger(tokens=10**9, cost=10**12, calls=10**6, tool_calls=10**6)
    assert much.next_call(RunBudget(), PRICES, CONFIG, HI).tokens.output == 1_000
    much.next_tool(RunBudget())


def test_an_unknown_price_holds_no_budget_of_money() -> None:
    """But tokens hold."""
    assert Ledger().next_call(RunBudget(cost=0), UNKNOWN, CONFIG, HI).cost is None
    with pytest.raises(BudgetSpent, match="tokens"):
        Ledger(tokens=99).next_call(RunBudget(cost=0, tokens=100), UNKNOWN, CONFIG, HI)


def test_a_lost_call_counts_what_was_reserved() -> None:
    lost = Spending(TokenUsage(10, 1_000, estimated=True), 10_010)
    assert Ledger.of([lost, Spending(TokenUsage(10, 5))], 3) == Ledger(1_025, 10_010, 2, 3)


@given(
    tokens=st.none() | st.integers(0, 20_000),
    cost=st.none() | st.integers(0, 200_000),
    texts=st.lists(st.text(alphabet="abc", max_size=2_000), max_size=10),
)
def test_a_run_never_passes_its_budget(tokens: int | None, cost: int | None, texts: list[str]) -> None:
    """However often it calls, if each call takes what was reserved for it."""
    budget, spent = RunBudget(cost=cost, tokens=tokens, calls=8), list[Spending]()
    try:
        for text in texts:
            request = ModelRequest("Be good.", (UserTurn(text),))
            found = Ledger.of(spent, 0).next_call(budget, PRICES, CONFIG, request)
            spent.append(Spending(found.tokens, found.cost))
    except BudgetSpent:
        pass
    ledger = Ledger.of(spent, 0)
    assert ledger.calls <= 8
    assert tokens is None or ledger.tokens <= tokens
    assert cost is None or ledger.cost <= cost
