"""The records of an agent's run beside its steps: calls of the model, messages to it, approvals. Pure.

Each is a row, and the conversation is made of them anew for each call: there is no second copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class CallStatus(StrEnum):
    """State of a call of the model; `lost` is one whose worker ended before the reply was committed."""

    SENT = "sent"
    ANSWERED = "answered"
    FAILED = "failed"
    LOST = "lost"
    CANCELLED = "cancelled"


class CallPurpose(StrEnum):
    """The purpose of a call of the model."""

    ACT = "act"
    SUMMARY = "summary"


class MessageMode(StrEnum):
    """When a message reaches the agent: with its next call, or by ending what it waits for."""

    NEXT = "next"
    INTERRUPT = "interrupt"


class WaitingFor(StrEnum):
    """What a run that is `waiting` waits for."""

    APPROVAL = "approval"
    ANSWER = "answer"


class Decision(StrEnum):
    """The answer to a request for approval."""

    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """The `n`-th call of a model in its run; a row of `model_calls`. `…_u` are millionths of a US dollar.

    `agent` is empty for the run's own, else it names the sub-agent. `inbox_upto` is the last message that
    the call saw. Tokens and cost are those of all its tries. `prefix` is the system text and the tools (of
    the first call), `view` what of the conversation was left out, `reply` the model's, as JSON.
    """

    run_id: str
    n: int
    status: CallStatus
    attempt: int
    model: str
    dialect: str
    request_hash: str
    reserved_tokens: int
    reserved_u: int | None
    sent_at: int
    agent: str = ""
    purpose: CallPurpose = CallPurpose.ACT
    inbox_upto: int = 0
    tries: int = 0
    first_at: int | None = None
    ended_at: int | None = None
    finish: str | None = None
    input_tokens: int = 0
    cached_tokens: int = 0
    cache_written_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    cost_u: int | None = None
    response_id: str | None = None
    error: dict[str, Any] | None = None
    view: dict[str, Any] | None = None
    prefix: dict[str, Any] | None = None
    reply: bytes | None = None

    @property
    def tokens(self) -> int:
        """What counts against a budget of tokens: what was reserved, until something was counted."""
        return self.reserved_tokens if self._uncounted else self.input_tokens + self.output_tokens

    @property
    def dollars_u(self) -> int:
        """What counts against a budget of money; nothing where the price is unknown."""
        return (self.reserved_u if self._uncounted else self.cost_u) or 0

    @property
    def _uncounted(self) -> bool:
        return self.status in {CallStatus.SENT, CallStatus.LOST}


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxMessage:
    """The `k`-th message of a user to a running agent, from 1; a row of `inbox`. `by` is who wrote it."""

    run_id: str
    content: str
    mode: MessageMode
    by: str
    created_at: int
    idempotency_key: str | None = None
    k: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A question whether a step may run, bound to its arguments by their hash; a row of `approvals`.

    `rule` is what asks. `expires_at` None: the question stays open.
    """

    run_id: str
    step_id: str
    args_sha256: str
    rule: str
    asked_at: int
    expires_at: int | None = None
    decision: Decision | None = None
    by: str | None = None
    decided_at: int | None = None
    note: str | None = None
