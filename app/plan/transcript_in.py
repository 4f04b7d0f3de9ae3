"""Reading a transcript that a user sends: bounded, line by line, and with the line in every refusal."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.core.agent_records import (
    Approval,
    CallRecord,
    CallStatus,
    Decision,
    InboxMessage,
    MessageMode,
)
from app.core.errors import Unprocessable
from app.core.models import StepRecord, StepStatus
from app.plan.explain import explain
from app.plan.run_fields import MAX_TRANSCRIPT
from app.plan.transcript import VERSION, Recording, how_it_ended, prefix_hash, reply_hash, text_hash

_MAX_LINES, _MAX_DEPTH, _MAX_CALLS = 20_000, 40, 1_000


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


_Text = Annotated[str, Field(max_length=200)]
_Count = Annotated[int, Field(ge=0, le=2**53)]


class _Tool(_Line):
    name: _Text
    description: str
    parameters: dict[str, Any]


class _Prefix(_Line):
    system: str
    tools: Annotated[list[_Tool], Field(max_length=200)]


class _RunLine(_Line):
    run_id: _Text
    prompt: Annotated[str, Field(min_length=1, max_length=100_000)]
    prompt_sha256: _Text | None = None
    agent: dict[str, Any] = Field(default_factory=dict[str, Any])
    prefix: _Prefix | None = None
    prefix_sha256: _Text | None = None
    continue_of: _Text | None = None
    status: _Text = "succeeded"
    error: dict[str, Any] | None = None


class _ToolCall(_Line):
    id: _Text
    name: _Text
    raw: str
    arguments: dict[str, Any] = Field(default_factory=dict[str, Any])
    problem: str = ""


class _Usage(_Line):
    input: _Count = 0
    output: _Count = 0
    cached: _Count = 0
    cache_written: _Count = 0
    reasoning: _Count = 0
    estimated: bool = False


class _Reply(_Line):
    model: _Text
    dialect: _Text
    message: dict[str, Any]
    text: str = ""
    calls: Annotated[list[_ToolCall], Field(max_length=128)] = Field(default_factory=list[_ToolCall])
    finish: Literal["stop", "tool_calls", "length", "refused", "other"] = "stop"
    usage: _Usage = Field(default_factory=_Usage)
    wasted: _Usage = Field(default_factory=_Usage)
    response_id: str | None = None
    served_by: str | None = None


class _View(_Line):
    stubs: _Count = 0
    dropped: _Count = 0
    forgotten: bool = False


class _CallLine(_Line):
    n: Annotated[int, Field(ge=1, le=1_000_000)]
    status: Literal["sent", "answered", "failed", "lost", "cancelled"]
    model: _Text
    dialect: _Text
    request_hash: _Text
    view: _View | None = None
    inbox_upto: _Count = 0
    reply: _Reply | None = None
    reply_sha256: _Text | None = None
    error: dict[str, Any] | None = None


class _StepLine(_Line):
    step_id: _Text
    idx: _Count
    call: Annotated[int, Field(ge=1, le=1_000_000)]
    call_id: _Text | None = None
    tool: _Text
    args: dict[str, Any] = Field(default_factory=dict[str, Any])
    status: Literal[
        "proposed",
        "waiting",
        "running",
        "refused",
        "interrupted",
        "succeeded",
        "failed",
        "cancelled",
        "timed_out",
    ]
    policy: _Text | None = None
    exit_code: int | None = None
    for_model: str = ""
    for_model_sha256: _Text | None = None


class _MessageLine(_Line):
    k: Annotated[int, Field(ge=1, le=1_000_000)]
    mode: Literal["next", "interrupt"]
    by: _Text = ""
    content: Annotated[str, Field(max_length=64_000)]
    created_at: int = 0
    sha256: _Text | None = None


class _ApprovalLine(_Line):
    step_id: _Text
    args_sha256: _Text
    rule: _Text
    asked_at: int = 0
    decision: Literal["approved", "denied", "expired"] | None = None
    by: _Text | None = None
    note: str | None = None


class _EndLine(_Line):
    lines: _Count


_KINDS: dict[str, type[_Line]] = {
    "run": _RunLine,
    "call": _CallLine,
    "step": _StepLine,
    "message": _MessageLine,
    "approval": _ApprovalLine,
    "end": _EndLine,
}


def parse(text: str) -> Recording:
    """Read a transcript.

    Raises:
        Unprocessable: it is none, of another version, changed into nonsense, or not whole; with the line.
    """
    if len(text) > MAX_TRANSCRIPT:
        raise _bad(f"has more than {MAX_TRANSCRIPT} characters")
    lines = text.rstrip("\n").split("\n")
    if len(lines) > _MAX_LINES:
        raise _bad(f"has more than {_MAX_LINES} lines")
    version = _object(lines[0], 1).get("tailrun_transcript")
    if version is None:
        raise _bad('is none: its first line is not {"tailrun_transcript": 1}')
    if version != VERSION:
        raise _bad(f"is of version {str(version)[:20]}, and this server reads version {VERSION}")
    found: Recording | None = None
    for number, raw in enumerate(lines[1:], 2):
        body = _object(raw, number)
        line = _read(body, number)
        if isinstance(line, _RunLine) and found is None:
            found = _begin(line)
        elif found is None or isinstance(line, _RunLine):
            raise _bad("must have the run's line as its second, and once", number)
        elif isinstance(line, _EndLine):
            if line.lines != number - 1 or number != len(lines):
                raise _bad("was cut, or has lines that were added", number)
            return _checked(found)
        else:
            _add(found, line, body, number)
    raise _bad("was cut: its last line is not that of the end")


def _begin(line: _RunLine) -> Recording:
    prefix = None if line.prefix is None else line.prefix.model_dump()
    found = Recording(
        run_id=line.run_id,
        prompt=line.prompt,
        agent=line.agent,
        prefix=prefix,
        end=how_it_ended(line.status, line.error),
        continues=line.continue_of,
    )
    if prefix is not None and line.prefix_sha256 not in (None, prefix_hash(prefix)):
        found.edited.append("the system text or the tools")
    if line.prompt_sha256 not in (None, text_hash(line.prompt)):
        found.edited.append("the prompt")
    return found


def _add(found: Recording, line: _Line | None, body: dict[str, Any], number: int) -> None:
    run_id = found.run_id
    match line:
        case _CallLine():
            if found.calls and line.n <= found.calls[-1].n:
                raise _bad(f"has call {line.n} twice or out of order", number)
            raw = None if line.reply is None else orjson.dumps(line.reply.model_dump())
            found.calls.append(_call(run_id, line, raw))
            if raw is not None and line.reply_sha256 not in (None, reply_hash(body["reply"])):
                found.edited.append(f"the reply to call {line.n}")
        case _StepLine():
            found.steps[line.step_id] = _step(run_id, line)
            if line.for_model_sha256 not in (None, text_hash(line.for_model)):
                found.edited.append(f"what the model was told of {line.step_id}")
        case _MessageLine():
            found.messages.append(_message(run_id, line))
            if line.sha256 not in (None, text_hash(line.content)):
                found.edited.append(f"message {line.k} of the user")
        case _ApprovalLine():
            found.approvals.append(_approval(run_id, line))
        case _:
            return


def _checked(found: Recording) -> Recording:
    if len(found.calls) > _MAX_CALLS:
        raise _bad(f"has more than {_MAX_CALLS} calls of the model")
    if [each.k for each in found.messages] != list(range(1, len(found.messages) + 1)):
        raise _bad("has messages that are not numbered from 1")
    if found.prefix is None or not any(call.reply for call in found.calls):
        raise _bad("has no reply of a model: there is nothing to replay")
    return found


def _call(run_id: str, line: _CallLine, reply: bytes | None) -> CallRecord:
    return CallRecord(
        run_id=run_id,
        n=line.n,
        status=CallStatus(line.status),
        attempt=1,
        model=line.model,
        dialect=line.dialect,
        request_hash=line.request_hash,
        reserved_tokens=0,
        reserved_u=None,
        sent_at=0,
        inbox_upto=line.inbox_upto,
        view=None if line.view is None else line.view.model_dump(),
        error=line.error,
        reply=reply if line.status == CallStatus.ANSWERED else None,
    )


def _step(run_id: str, line: _StepLine) -> StepRecord:
    names = ("step_id", "idx", "tool", "args", "exit_code", "call", "call_id", "policy", "for_model")
    fields = {name: getattr(line, name) for name in names}
    status = StepStatus(line.status)
    return StepRecord(run_id=run_id, status=status, attempt=1, started_at=0, **fields)


def _message(run_id: str, line: _MessageLine) -> InboxMessage:
    mode = MessageMode(line.mode)
    return InboxMessage(
        run_id=run_id, content=line.content, mode=mode, by=line.by, created_at=line.created_at, k=line.k
    )


def _approval(run_id: str, line: _ApprovalLine) -> Approval:
    return Approval(
        run_id=run_id,
        step_id=line.step_id,
        args_sha256=line.args_sha256,
        rule=line.rule,
        asked_at=line.asked_at,
        decision=None if line.decision is None else Decision(line.decision),
        by=line.by,
        note=line.note,
    )


def _read(body: dict[str, Any], number: int) -> _Line | None:
    """Return a line that is known; None for one of a newer release."""
    kind = _KINDS.get(str(body.get("type")))
    if kind is None:
        return None
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _bad(explain(error, kind), number) from None


def _object(raw: str, number: int) -> dict[str, Any]:
    try:
        found: Any = orjson.loads(raw)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise _bad("has a line that is no JSON object", number)
    layer, levels = [cast("Any", found)], 0
    while layer:
        levels += 1
        if levels > _MAX_DEPTH:
            raise _bad(f"has a line that is nested deeper than {_MAX_DEPTH} levels", number)
        inner = (each.values() if isinstance(each, dict) else each for each in layer)
        layer = [item for some in inner for item in some if isinstance(item, (dict, list))]
    return cast("dict[str, Any]", found)


def _bad(what: str, line: int | None = None) -> Unprocessable:
    where = "" if line is None else f", line {line}"
    return Unprocessable(f"transcript{where}: it {what}.", code="bad_transcript")
