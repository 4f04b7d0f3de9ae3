"""What a language model is to the rest of the program: a request goes in, pieces of a reply come out.

A conversation is a system text and turns: what the user wrote, what the model replied, what tools
returned. A reply keeps the assistant's message as the server sent it (`message`) and goes back to
the same model unchanged, unknown fields too: some models refuse the second call otherwise. To
another model it goes as text and calls. Nothing here knows a wire format; a dialect does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, TypeAlias

NO_OUTPUT = "(no output)"
"""Sent in place of an empty text: several servers refuse one."""


class Finish(StrEnum):
    """Why a reply ended."""

    STOP = "stop"
    CALLS = "tool_calls"
    LENGTH = "length"
    REFUSED = "refused"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one call. `input` includes `cached`, `output` includes `reasoning`.

    `cache_written` is what the server put into its cache, also a part of `input`; some charge more for it.
    """

    input: int = 0
    output: int = 0
    cached: int = 0
    cache_written: int = 0
    reasoning: int = 0
    estimated: bool = False

    def __add__(self, other: TokenUsage) -> TokenUsage:
        """Sum two calls; the sum is an estimate if one of them is."""
        return TokenUsage(
            self.input + other.input,
            self.output + other.output,
            self.cached + other.cached,
            self.cache_written + other.cache_written,
            self.reasoning + other.reasoning,
            self.estimated or other.estimated,
        )

    @property
    def total(self) -> int:
        """Tokens that a budget counts."""
        return self.input + self.output


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model is told of it; `parameters` is a flat JSON Schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for. With a `problem` it must not run; the model is told the problem."""

    id: str
    name: str
    raw: str
    """The arguments as they came."""
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    problem: str = ""


@dataclass(frozen=True, slots=True)
class UserTurn:
    """What the user wrote."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolTurn:
    """What the call `call_id` of the last reply returned, as the model is told of it."""

    call_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply of a model, and what it took."""

    model: str
    """The model's name in this deployment."""
    dialect: str
    message: dict[str, Any]
    """The assistant's message, verbatim, but for broken arguments, which are `{}`."""
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish: Finish = Finish.STOP
    usage: TokenUsage = field(default_factory=TokenUsage)
    wasted: TokenUsage = field(default_factory=TokenUsage)
    """What tries took that broke off before this one, as an estimate."""
    response_id: str | None = None
    served_by: str | None = None
    """The model's name as the server gives it."""

    @property
    def empty(self) -> bool:
        """Whether it says nothing and asks for nothing."""
        return not self.calls and not self.text.strip()


Turn: TypeAlias = UserTurn | Reply | ToolTurn


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One call of a model. None leaves a value to the model's settings."""

    system: str
    turns: tuple[Turn, ...]
    tools: tuple[ToolSpec, ...] = ()
    max_output_tokens: int | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of what the model writes, as it comes."""

    kind: Literal["text", "reasoning"]
    text: str


@dataclass(frozen=True, slots=True)
class Retrying:
    """A try failed and another follows after `delay_s`; the deltas since the last such piece are void."""

    code: str
    message: str
    delay_s: float
    wasted: TokenUsage


Piece: TypeAlias = Delta | Retrying | Reply


class Model(Protocol):
    """A model that can be called."""

    @property
    def name(self) -> str:
        """Its name in this deployment."""
        ...

    def stream(self, request: ModelRequest) -> AbstractAsyncContextManager[AsyncIterator[Piece]]:
        """Call the model: deltas as they come, at last the whole reply.

        Leaving the context, at the end, by an error or a cancel, closes the connection, on which
        servers stop to generate.

        Raises (while iterating):
            ModelFailure: see `app.llm.failures`.
        """
        ...
