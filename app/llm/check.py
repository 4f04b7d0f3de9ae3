"""Whether a model works as configured: one small call, which costs what such a call costs.

Tells what an operator wants to know before runs depend on it: is it reached, does it stream, does
it call tools, does the server count tokens, what was learned about its fields, and is a price known.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from app.llm.client import ModelClient
from app.llm.failures import ModelFailure, ModelUnavailable
from app.llm.model import Delta, ModelRequest, Reply, TokenUsage, ToolSpec, UserTurn
from app.llm.models_file import ModelConfig
from app.llm.prices import Prices

_LONGEST_S = 90.0
_MOST_TOKENS = 2_000
"""Enough for a model that thinks before it calls."""
_QUESTION = ModelRequest(
    "You test a connection. Do what is asked, in one step.",
    (UserTurn("Call the tool `answer` with the sum of 2 and 2. Write nothing besides."),),
    (
        ToolSpec(
            "answer",
            "Takes the answer.",
            {
                "type": "object",
                "properties": {"sum": {"type": "integer"}},
                "required": ["sum"],
                "additionalProperties": False,
            },
        ),
    ),
    _MOST_TOKENS,
)


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What a check found. `cost` is in millionths of a US dollar; None: the price is unknown."""

    name: str
    ok: bool
    problem: str = ""
    first_token_s: float | None = None
    calls_tools: bool = False
    usage: TokenUsage | None = None
    cost: int | None = None
    learned: tuple[str, ...] = ()
    served_by: str | None = None


async def check(config: ModelConfig, prices: Prices) -> ModelReport:
    """Call a model once, with one retry."""
    client = ModelClient(config.model_copy(update={"retries": min(config.retries, 1)}))
    try:
        async with asyncio.timeout(_LONGEST_S):
            return await _ask(client, prices)
    except TimeoutError:
        return ModelReport(config.name, ok=False, problem=f"No whole reply within {_LONGEST_S:g} s.")
    except ModelFailure as failure:
        return ModelReport(config.name, ok=False, problem=failure.message)
    finally:
        await client.aclose()


async def _ask(client: ModelClient, prices: Prices) -> ModelReport:
    began, first, reply = asyncio.get_running_loop().time(), None, None
    async with client.stream(_QUESTION) as pieces:
        async for piece in pieces:
            if isinstance(piece, Delta | Reply) and first is None:
                first = asyncio.get_running_loop().time() - began
            if isinstance(piece, Reply):
                reply = piece
    if reply is None:
        raise ModelUnavailable("There was no reply.")
    called = any(call.name == "answer" and not call.problem for call in reply.calls)
    problem = "" if called else "It answered, but called no tool when it was asked to: agents need that."
    return ModelReport(
        client.name,
        ok=called,
        problem=problem,
        first_token_s=first,
        calls_tools=called,
        usage=reply.usage,
        cost=prices.cost(client.config, reply.usage),
        learned=client.learned.facts(),
        served_by=reply.served_by,
    )
