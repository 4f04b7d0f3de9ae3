"""What calls cost: rounding up, tokens from the cache, unknown prices, and what may be spent at most."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.llm.model import ModelRequest, TokenUsage, UserTurn
from app.llm.models_file import BadModels, ModelConfig
from app.llm.prices import Prices

CONFIG = ModelConfig(name="quick", model="some-small", max_output_tokens=1_000)
HI = ModelRequest("", (UserTurn("hello"),))


def prices(tmp_path: Path, text: str) -> Prices:
    path = tmp_path / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return Prices.load(path)


def test_a_price_is_dollars_a_million_tokens(tmp_path: Path) -> None:
    known = prices(tmp_path, "quick: {input: 0.25, cached: 0.025, cache_written: 0.5, output: 2}")
    usage = TokenUsage(input=1_000_000, cached=400_000, cache_written=100_000, output=10_000)
    assert known.cost(CONFIG, usage) == 500_000 * 0.25 + 400_000 * 0.025 + 100_000 * 0.5 + 10_000 * 2


def test_costs_are_rounded_up_and_exact(tmp_path: Path) -> None:
    known = prices(tmp_path, "quick: {input: 0.1, output: 0.1}")
    assert known.cost(CONFIG, TokenUsage(input=1)) == 1
    assert known.cost(CONFIG, TokenUsage(input=20, output=10)) == 3  # 0.1 as a float would make it 4


def test_the_providers_name_counts_where_ours_is_not_listed(tmp_path: Path) -> None:
    assert prices(tmp_path, "some-small: {input: 1, output: 1}").cost(CONFIG, TokenUsage(1, 1)) == 2


def test_an_unknown_price_is_no_price(tmp_path: Path) -> None:
    """Not 0: the cost is unknown, and budgets of money don't hold."""
    known = Prices.load(None)
    assert known.cost(CONFIG, TokenUsage(10, 10)) is None
    reserved = known.reserve(CONFIG, HI, cost_left=0)
    assert reserved is not None
    assert reserved.cost is None


def test_what_is_left_bounds_the_output(tmp_path: Path) -> None:
    known = prices(tmp_path, "quick: {input: 1, output: 10}")
    free = known.reserve(CONFIG, HI)
    assert free is not None
    assert free.tokens.output == 1_000
    size = free.tokens.input
    by_tokens = known.reserve(CONFIG, HI, tokens_left=size + 7)
    assert by_tokens is not None
    assert by_tokens.tokens.output == 7
    by_cost = known.reserve(CONFIG, HI, cost_left=size + 75)
    assert by_cost is not None
    assert by_cost.tokens.output == 7
    for nothing in ({"tokens_left": 0}, {"cost_left": 0}, {"tokens_left": size}, {"cost_left": size}):
        assert known.reserve(CONFIG, HI, **nothing) is None


@given(tokens=st.integers(0, 5_000), cost=st.integers(0, 50_000), text=st.text(max_size=500))
def test_a_reservation_never_passes_what_is_left(tokens: int, cost: int, text: str) -> None:
    known = Prices.load(None)
    found = known.reserve(CONFIG, ModelRequest(text, (UserTurn(text),)), tokens_left=tokens, cost_left=cost)
    assert found is None or found.tokens.total <= tokens


@pytest.mark.parametrize(
    "text",
    ["quick: {input: -1, output: 1}", "quick: {input: 1}", "quick: {input: 1, output: 1, x: 1}", "- 1"],
)
def test_a_wrong_price_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadModels, match=r"prices\.yaml"):
        prices(tmp_path, text)
