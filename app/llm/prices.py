"""What a call costs, in millionths of a US dollar, and what it may cost at most before it is made.

Prices come from the file that LLM_PRICES_FILE names: US dollars a million tokens, by the model's
name in this deployment or by the provider's. A price that is not there is unknown, never 0: cost is
None then, and only budgets of tokens hold.

    some-model-small: {input: 0.25, cached: 0.025, output: 2}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.llm.dialect import input_estimate
from app.llm.model import ModelRequest, TokenUsage
from app.llm.models_file import BadModels, ModelConfig, read_yaml

_INPUT_MARGIN = Decimal("1.25")
"""What a reservation adds to its estimate of the input: text of few letters has more tokens a byte."""


class Price(BaseModel):
    """US dollars a million tokens, which is millionths of a dollar a token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Decimal = Field(ge=0)
    output: Decimal = Field(ge=0)
    cached: Decimal | None = Field(None, ge=0)
    cache_written: Decimal | None = Field(None, ge=0)

    def cost(self, usage: TokenUsage) -> int:
        """Return what tokens cost, rounded up to a millionth of a dollar."""
        fresh = max(0, usage.input - usage.cached - usage.cache_written)
        cached = self.input if self.cached is None else self.cached
        written = self.input if self.cache_written is None else self.cache_written
        total = fresh * self.input + usage.cached * cached + usage.cache_written * written
        return int((total + usage.output * self.output).to_integral_value(ROUND_CEILING))


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a call may take at most: tokens, and millionths of a dollar (None: the price is unknown)."""

    tokens: TokenUsage
    cost: int | None


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices that this deployment knows."""

    by_name: Mapping[str, Price]

    @classmethod
    def load(cls, path: Path | None) -> Prices:
        """Read the file; none at all knows no price. Blocking.

        Raises:
            BadModels: it is wrong.
        """
        if path is None:
            return cls({})
        found: Any = read_yaml(path)
        try:
            return cls(TypeAdapter(dict[str, Price]).validate_python(found or {}))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise BadModels(f"{path}: {where}: {first['msg']} (see docs/agent.md)") from None

    def of(self, config: ModelConfig) -> Price | None:
        """Return a model's price; None: unknown."""
        return self.by_name.get(config.name) or self.by_name.get(config.model)

    def cost(self, config: ModelConfig, usage: TokenUsage) -> int | None:
        """Return what a call cost; None: its price is unknown."""
        price = self.of(config)
        return None if price is None else price.cost(usage)

    def reserve(
        self,
        config: ModelConfig,
        request: ModelRequest,
        *,
        tokens_left: int | None = None,
        cost_left: int | None = None,
    ) -> Reservation | None:
        """Return what to reserve for a call, with as much output as is left for; None: it does not fit.

        None as a limit means none; 0 means that nothing may be spent.
        """
        size = int((input_estimate(request) * _INPUT_MARGIN).to_integral_value(ROUND_CEILING))
        output = request.max_output_tokens or config.max_output_tokens
        if tokens_left is not None:
            output = min(output, tokens_left - size)
        price = self.of(config)
        if price is not None and cost_left is not None:
            left = cost_left - price.cost(TokenUsage(input=size))
            output = min(output, int(left / price.output)) if price.output else output if left >= 0 else 0
        if output < 1:
            return None
        usage = TokenUsage(size, output, estimated=True)
        return Reservation(usage, None if price is None else price.cost(usage))
