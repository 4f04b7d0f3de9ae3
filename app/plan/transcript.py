"""What a run of an agent leaves, as lines of JSON: the recorded rows, and nothing that follows from them.

    {"tailrun_transcript": 1}
    {"type": "run", …}       the prompt, what was asked of the agent, what every request began with
    {"type": "call", …}      one of the model's, with its reply as it came
    {"type": "step", …}      one that it asked for, with what it was told of it
    {"type": "message", …}   the user's
    {"type": "approval", …}
    {"type": "end", "lines": N}

A request is in no line: it is folded from them. Each text that goes into one has a hash beside it, so that a
line which was changed by hand is found. Unknown fields and unknown types of lines are passed over: a newer
release may add some.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from app.core.agent_records import Approval, CallRecord, InboxMessage
from app.core.models import Run, StepRecord
from app.plan.fenced_plans import AGENT

VERSION = 1
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_ID = re.compile(_UUID)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?", re.ASCII)
_PATH_ENDS = frozenset(" \t\r\n\"'=:,;()[]{}<>|`")

Mask = Callable[[Any], Any]
"""Returns a text or a record without secrets."""


# -- hashes ---------------------------------------------------------------------------------


def same_everywhere(text: str) -> str:
    """Return what a tool said without what differs from run to run: ids, the workspace's path, times."""
    out, at = list[str](), 0
    for match in _ID.finditer(text):
        start = match.start()
        while start > at and text[start - 1] not in _PATH_ENDS:
            start -= 1
        path = text.find("/", start, match.start())
        out += (text[at : match.start() if path < 0 else path], "<run>")
        at = match.end()
    return _TIME.sub("<time>", "".join((*out, text[at:])))


def text_hash(text: str) -> str:
    """Return what tells one text of a conversation from another."""
    return hashlib.sha256(same_everywhere(text).encode(errors="replace")).hexdigest()


def reply_hash(reply: Mapping[str, Any]) -> str:
    """Return what tells one reply, as its row has it, from another."""
    calls = [[call.get("id"), call.get("name"), call.get("raw")] for call in reply.get("calls") or ()]
    said = [reply.get("message"), reply.get("text"), reply.get("finish"), calls]
    return hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest()


def prefix_hash(prefix: Mapping[str, Any]) -> str:
    """Return what tells the system text and the tools of one run from another's."""
    return hashlib.sha256(orjson.dumps(prefix, option=orjson.OPT_SORT_KEYS)).hexdigest()


# -- out ------------------------------------------------------------------------------------


def head_line() -> bytes:
    """Return the first line."""
    return _line({"tailrun_transcript": VERSION})


def end_line(lines: int) -> bytes:
    """Return the last line; `lines` are all before it."""
    return _line({"type": "end", "lines": lines})


def run_line(run: Run, prefix: dict[str, Any] | None, mask: Mask) -> bytes:
    """Return the line of the run itself."""
    prompt, agent = mask(str(run.spec.get("prompt", ""))), mask(_asked(run))
    kept = None if prefix is None else mask(prefix)
    return _line(
        {
            "type": "run",
            "run_id": run.run_id,
            "prompt": prompt,
            "prompt_sha256": text_hash(prompt),
            "agent": agent,
            "prefix": kept,
            "prefix_sha256": None if kept is None else prefix_hash(kept),
            "continue_of": (run.agent or {}).get("continue_of"),
            "status": run.status,
            "error": mask(run.error),
            "result": mask(run.result),
            "created_at": run.created_at,
            "ended_at": run.ended_at,
        }
    )


def call_line(call: CallRecord, mask: Mask) -> bytes:
    """Return the line of a call of the model."""
    reply = None if call.reply is None else mask(orjson.loads(call.reply))
    names = ("n", "agent", "purpose", "status", "attempt", "tries", "dialect", "model", "request_hash")
    names += ("view", "inbox_upto", "sent_at", "first_at", "ended_at", "finish", "cost_u", "response_id")
    names += ("input_tokens", "cached_tokens", "cache_written_tokens", "output_tokens", "reasoning_tokens")
    names += ("estimated",)
    found = {name: getattr(call, name) for name in names}
    seal = None if reply is None else reply_hash(reply)
    return _line({"type": "call", **found, "error": mask(call.error), "reply": reply, "reply_sha256": seal})


def step_line(step: StepRecord, mask: Mask) -> bytes:
    """Return the line of a step."""
    told = mask(step.for_model or "")
    names = ("step_id", "idx", "call", "call_id", "tool", "status", "policy", "exit_code", "attempt")
    names += ("started_at", "ended_at")
    found = {name: getattr(step, name) for name in names}
    args, error = mask(step.args), mask(step.error)
    more = {"args": args, "error": error, "for_model": told, "for_model_sha256": text_hash(told)}
    return _line({"type": "step", **found, **more})


def message_line(message: InboxMessage, mask: Mask) -> bytes:
    """Return the line of a message of the user."""
    content = mask(message.content)
    found = {name: getattr(message, name) for name in ("k", "mode", "by", "created_at")}
    return _line({"type": "message", **found, "content": content, "sha256": text_hash(content)})


def approval_line(asked: Approval, mask: Mask) -> bytes:
    """Return the line of an approval."""
    names = ("step_id", "args_sha256", "rule", "asked_at", "expires_at", "decision", "by", "decided_at")
    found = {name: getattr(asked, name) for name in names}
    return _line({"type": "approval", **found, "note": mask(asked.note)})


def _asked(run: Run) -> dict[str, Any]:
    return {name: value for name, value in (run.agent or {}).items() if name not in {"replay", "continue_of"}}


def _line(body: dict[str, Any]) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)


# -- what it holds ---------------------------------------------------------------------------


@dataclass(slots=True)
class Recording:
    """What was recorded of a run. `edited`: what was changed by hand since, in words, in its order."""

    run_id: str
    prompt: str
    agent: dict[str, Any]
    prefix: dict[str, Any] | None
    end: str
    continues: str | None = None
    calls: list[CallRecord] = field(default_factory=list[CallRecord])
    steps: dict[str, StepRecord] = field(default_factory=dict[str, StepRecord])
    messages: list[InboxMessage] = field(default_factory=list[InboxMessage])
    approvals: list[Approval] = field(default_factory=list[Approval])
    edited: list[str] = field(default_factory=list[str])


def recording(
    run: Run, calls: list[CallRecord], steps: list[StepRecord], messages: list[InboxMessage]
) -> Recording:
    """Return the recording that a run's rows are."""
    return Recording(
        run_id=run.run_id,
        prompt=str(run.spec.get("prompt", "")),
        agent=_asked(run),
        prefix=next((call.prefix for call in calls if call.prefix), None),
        end=how_it_ended(run.status, run.error),
        continues=(run.agent or {}).get("continue_of"),
        calls=calls,
        steps={step.step_id: step for step in steps},
        messages=messages,
    )


def how_it_ended(status: str, error: Mapping[str, Any] | None) -> str:
    """Say in a few words how a run ended."""
    if not error:
        return str(status)
    return f"{status} ({str(error.get('code'))[:100]}): {str(error.get('message'))[:500]}"


def is_recorded(run: Run) -> bool:
    """Whether a run is an agent's, so that there is something of it to write down."""
    return run.spec.get("planner") == AGENT
