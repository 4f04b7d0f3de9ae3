"""The conversation of an agent run, as a pure function of its rows: there is no second copy.

    prompt, model calls, tool calls, messages ──> turns of the next request

Only answered calls count; one that was lost or failed left nothing that the model has said, and no
server takes an empty reply back. Each
call of a tool has exactly one result, directly behind its reply and in its order, whatever became
of it: servers refuse a conversation that lacks one, or has two, for good. What the user wrote
meanwhile comes behind the results, before the call that saw it first (`inbox_upto`), and stays there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import orjson

from app.core.agent_records import CallStatus
from app.llm.model import Finish, Reply, TokenUsage, ToolCall, ToolTurn, Turn, UserTurn

INTERRUPTED = (
    "(interrupted: the worker that ran this ended. "
    "It may have had part of its effect; look before you repeat it.)"
)
SKIPPED = "(not run)"
FINISH_ONLY = "(That is not taken as the answer. Call `finish` with a result of the form that it wants.)"
CUT = "(Your reply was cut at its length limit. Say it shorter, or write it into a file in pieces.)"


STUB = "[… shortened, for the conversation is long: {} of {} bytes are left out …]"
DROPPED = "(Replies 1 to {} and what came of them are left out here, for the conversation is long.)"
_STUB_CHARS = 500


@dataclass(frozen=True, slots=True)
class View:
    """What of a long conversation is left out: results of calls up to `stubs` are shortened to their ends.

    Replies up to `dropped` are left out whole, with their results; what the user wrote never is. `forgotten`:
    the conversation of the run that this one continues is left out.
    """

    stubs: int = 0
    dropped: int = 0
    forgotten: bool = False


class ToolStatus(StrEnum):
    """State of a call of a tool, as the model has to know it."""

    PROPOSED = "proposed"
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A call of the model: the `n`-th of its run, which saw the user's messages up to `inbox_upto`."""

    n: int
    status: CallStatus
    inbox_upto: int = 0
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class CallResult:
    """What became of the `k`-th call of the reply of model call `n`; `for_model` is what it is told."""

    n: int
    k: int
    status: ToolStatus
    for_model: str = ""


@dataclass(frozen=True, slots=True)
class UserMessage:
    """The `k`-th message of the user to a running agent, from 1."""

    k: int
    content: str


def conversation(
    prompt: str,
    calls: Sequence[ModelCall],
    results: Sequence[CallResult],
    inbox: Sequence[UserMessage] = (),
    view: View | None = None,
    *,
    finish_only: bool = False,
) -> tuple[Turn, ...]:
    """Return the turns of the next request; rows may come in any order.

    `finish_only`: a reply without calls is no answer, which the model is told.
    """
    view = view or View()
    found = {(each.n, each.k): each for each in results}
    messages = sorted(inbox, key=lambda message: message.k)
    turns: list[Turn] = [UserTurn(prompt)]
    if view.dropped:
        turns.append(UserTurn(DROPPED.format(view.dropped)))
    seen = 0
    for call in sorted(calls, key=lambda call: call.n):
        if call.status is not CallStatus.ANSWERED or call.reply is None or call.reply.empty:
            continue
        turns += [UserTurn(each.content) for each in messages if seen < each.k <= call.inbox_upto]
        seen = max(seen, call.inbox_upto)
        if call.n <= view.dropped:
            continue
        turns.append(call.reply)
        turns += _results(call.n, call.reply, found, shortened=call.n <= view.stubs)
        if not call.reply.calls and call.reply.finish is Finish.LENGTH:
            turns.append(UserTurn(CUT))
        elif not call.reply.calls and finish_only:
            turns.append(UserTurn(FINISH_ONLY))
    turns += [UserTurn(each.content) for each in messages if each.k > seen]
    return tuple(turns)


def _results(
    n: int, reply: Reply, found: Mapping[tuple[int, int], CallResult], *, shortened: bool
) -> list[Turn]:
    told = [(call.id, _told(call, found.get((n, k)))) for k, call in enumerate(reply.calls)]
    return [ToolTurn(call_id, _stub(text) if shortened else text) for call_id, text in told]


def _stub(text: str) -> str:
    left_out = text[_STUB_CHARS:-_STUB_CHARS]
    if len(left_out) <= _STUB_CHARS:
        return text
    note = STUB.format(len(left_out.encode()), len(text.encode()))
    return f"{text[:_STUB_CHARS]}\n{note}\n{text[-_STUB_CHARS:]}"


def _told(call: ToolCall, result: CallResult | None) -> str:
    """Return what the model is told of one call; one that never began is said to be so."""
    if result is None:
        return call.problem or SKIPPED
    match result.status:
        case ToolStatus.DONE | ToolStatus.REFUSED:
            return result.for_model
        case ToolStatus.INTERRUPTED:
            return f"{INTERRUPTED} {result.for_model}".rstrip()
        case ToolStatus.PROPOSED | ToolStatus.RUNNING:
            return SKIPPED


def encode_reply(reply: Reply) -> bytes:
    """Write a reply as its row keeps it."""
    return orjson.dumps(asdict(reply))


def decode_reply(raw: bytes) -> Reply:
    """Read a reply from its row; fields that a newer release adds are ignored."""
    body: dict[str, Any] = orjson.loads(raw)
    fields: dict[str, Any] = {
        **_known(Reply, body),
        "calls": tuple(ToolCall(**_known(ToolCall, each)) for each in body.get("calls", ())),
        "finish": Finish(body["finish"]),
        "usage": TokenUsage(**_known(TokenUsage, body.get("usage", {}))),
        "wasted": TokenUsage(**_known(TokenUsage, body.get("wasted", {}))),
    }
    return Reply(**fields)


def _known(kind: type[Any], body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in kind.__dataclass_fields__ if name in body}
