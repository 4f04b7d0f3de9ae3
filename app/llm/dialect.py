"""What a dialect is: how a request is written, and how the frames of an answer become a reply.

Dialects are pure: no I/O, no clock. `app.llm.wire` moves their bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from app.llm.failures import ModelUnavailable
from app.llm.model import Delta, ModelRequest, Reply, TokenUsage, ToolTurn, UserTurn
from app.llm.models_file import ModelConfig
from tailrun.sse import Frame

BYTES_A_TOKEN = 4
"""What estimates go by; English text has about four."""
_DROPPABLE = ("stream_options", "temperature", "reasoning_details", "reasoning_content", "reasoning")
_MEANS_UNKNOWN = (
    *("unsupported", "not supported", "does not support", "unknown", "unrecognized", "unexpected", "extra"),
    *("not permitted", "not allowed", "not available", "invalid field", "only the default", "deprecated"),
)
_LIMIT_FIELDS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


@dataclass(slots=True)
class Learned:
    """What a server has refused once and is not sent again; lives as long as the process."""

    limit_field: str = "max_tokens"
    dropped: set[str] = field(default_factory=set[str])
    version: int = 0
    """Counts what was learned, so that a call which was on its way meanwhile is sent again too."""
    _switched: bool = False

    def learn(self, words: str, *, may_switch: bool) -> bool:
        """Look whether a refusal (in small letters) names a field that can be left out or renamed.

        Returns whether the request is worth sending again; each field is learned once.
        """
        if not any(each in words for each in _MEANS_UNKNOWN):
            return False
        other = _LIMIT_FIELDS[self.limit_field]
        if may_switch and not self._switched and self.limit_field in words:
            self.limit_field, self._switched = other, True
            self.version += 1
            return True
        for name in _DROPPABLE:
            if name in words and name not in self.dropped:
                self.dropped.add(name)
                self.version += 1
                return True
        return False

    def facts(self) -> tuple[str, ...]:
        """Return in words what was learned."""
        named = [f"The server takes no {name}." for name in sorted(self.dropped)]
        return (*named, *([f"The limit goes as {self.limit_field}."] if self._switched else []))


class Assembly(Protocol):
    """An answer on its way."""

    @property
    def whole(self) -> bool:
        """Whether the server has said why the reply ended: without that it was cut."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the end mark came; nothing of use follows."""
        ...

    def feed(self, frame: Frame) -> Sequence[Delta]:
        """Take a frame; return what it adds to the text.

        Raises:
            ModelFailure: the frame is an error, or can't be read.
        """
        ...

    def reply(self) -> Reply:
        """Return the reply; its usage is zero where the server told none."""
        ...

    def written(self) -> int:
        """Return how many bytes the model has written so far, for estimates."""
        ...


class Dialect(Protocol):
    """One wire format."""

    @property
    def path(self) -> str:
        """Where requests are posted, below the base URL."""
        ...

    def body(self, config: ModelConfig, request: ModelRequest, learned: Learned) -> dict[str, Any]:
        """Write a request."""
        ...

    def assembly(self, name: str) -> Assembly:
        """Begin an answer of the model `name`."""
        ...


def parsed(frame: Frame) -> dict[str, Any]:
    """Read a frame's JSON object.

    Raises:
        ModelUnavailable: it is none.
    """
    try:
        found: Any = orjson.loads(frame.data)
    except orjson.JSONDecodeError as error:
        raise ModelUnavailable(f"The model's server sent a broken event: {error.msg}.") from error
    if not isinstance(found, dict):
        raise ModelUnavailable("The model's server sent an event that is no object.")
    return found


def count(found: Any, *path: str) -> int:
    """Return a count of tokens from an object of an answer; 0 where there is none that makes sense."""
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, float) and math.isfinite(found):
        found = int(found)
    return found if type(found) is int and 0 <= found < 1_000_000_000 else 0  # noqa: PLR2004 - no call has more


def verbatim(reply: Reply, name: str, dialect: str) -> bool:
    """Whether a reply goes back as it came: only to the model that made it."""
    return reply.model == name and reply.dialect == dialect and bool(reply.message)


def input_estimate(request: ModelRequest) -> int:
    """Return about how many tokens a request has: its bytes over four, and what each message costs."""
    size = len(request.system.encode())
    for turn in request.turns:
        if isinstance(turn, UserTurn | ToolTurn):
            size += len(turn.text.encode()) + 16
        else:
            size += len(orjson.dumps(turn.message)) if turn.message else len(turn.text.encode())
    for tool in request.tools:
        size += len(tool.name) + len(tool.description.encode()) + len(orjson.dumps(tool.parameters))
    return size // BYTES_A_TOKEN + 1


def usage_or_estimate(usage: TokenUsage, request: ModelRequest, written: int) -> TokenUsage:
    """Return what the server counted, or an estimate where it counted nothing."""
    if usage.input or usage.output:
        return usage
    return TokenUsage(input_estimate(request), -(-written // BYTES_A_TOKEN), estimated=True)
