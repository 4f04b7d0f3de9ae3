"""A request as it follows from the rows of a run: for the next call of the model, and for any that was made.

Pure, and it starts nothing: whoever shows a run may fold it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.agent.conversation import (
    CallResult,
    ModelCall,
    ToolStatus,
    UserMessage,
    View,
    conversation,
    decode_reply,
)
from app.core.agent_records import CallPurpose, CallRecord, InboxMessage
from app.core.models import StepRecord, StepStatus
from app.llm.model import Reply, ToolTurn, Turn, UserTurn

_TOLD = {
    StepStatus.PROPOSED: ToolStatus.PROPOSED,
    StepStatus.WAITING: ToolStatus.PROPOSED,
    StepStatus.RUNNING: ToolStatus.RUNNING,
    StepStatus.REFUSED: ToolStatus.REFUSED,
    StepStatus.INTERRUPTED: ToolStatus.INTERRUPTED,
}


def step_id(n: int, k: int) -> str:
    """Name the step of the `k`-th call of a tool (from 0) in the reply of the model's call `n`."""
    return f"c{n}-{k + 1}"


def view_of(kept: Mapping[str, Any] | None) -> View:
    """Read what a call has left out of the conversation."""
    kept = kept or {}
    return View(int(kept.get("stubs", 0)), int(kept.get("dropped", 0)), bool(kept.get("forgotten")))


def answered(calls: Iterable[CallRecord], replies: Mapping[int, Reply]) -> list[CallRecord]:
    """Return the calls that have a reply to what the run is for."""
    return [call for call in calls if call.n in replies and call.purpose is CallPurpose.ACT]


def fold(
    prompt: str,
    calls: Sequence[CallRecord],
    replies: Mapping[int, Reply],
    steps: Mapping[str, StepRecord],
    messages: Iterable[InboxMessage],
    *,
    view: View,
    finish_only: bool = False,
) -> tuple[Turn, ...]:
    """Return the conversation that these rows make; `calls` are those that have a reply."""
    results = [
        CallResult(call.n, k, _TOLD.get(record.status, ToolStatus.DONE), record.for_model or "")
        for call in calls
        for k, _ in enumerate(replies[call.n].calls)
        if (record := steps.get(step_id(call.n, k))) is not None
    ]
    made = [ModelCall(call.n, call.status, call.inbox_upto, replies.get(call.n)) for call in calls]
    said = [UserMessage(each.k, each.content) for each in messages]
    return conversation(prompt, made, results, said, view, finish_only=finish_only)


def asked_for(
    prompt: str,
    agent: Mapping[str, Any],
    calls: Sequence[CallRecord],
    steps: Mapping[str, StepRecord],
    messages: Iterable[InboxMessage],
    *,
    n: int,
) -> tuple[Turn, ...]:
    """Return the conversation that went out with the call `n` of a run, without that of an earlier run."""
    this = next(call for call in calls if call.n == n)
    before = [call for call in calls if call.n < n and call.reply]
    replies = {call.n: decode_reply(call.reply) for call in before if call.reply}
    seen = [each for each in messages if each.k <= this.inbox_upto]
    finish_only = agent.get("result_schema") is not None
    known = answered(before, replies)
    return fold(prompt, known, replies, steps, seen, view=view_of(this.view), finish_only=finish_only)


def shown(turn: Turn) -> dict[str, Any]:
    """Return a turn as people are shown it."""
    if isinstance(turn, UserTurn):
        return {"role": "user", "content": turn.text}
    if isinstance(turn, ToolTurn):
        return {"role": "tool", "content": turn.text, "call_id": turn.call_id}
    calls = [{"id": call.id, "name": call.name, "arguments": call.raw} for call in turn.calls]
    return {"role": "assistant", "content": turn.text, "calls": calls}
