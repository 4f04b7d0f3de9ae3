"""What a replay is made of: a run of the caller's, or a transcript that comes in."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.core.errors import Conflict, Unprocessable
from app.core.models import Run
from app.plan.explain import explain
from app.plan.run_fields import AgentIn, RunFields
from app.plan.transcript import Recording, is_recorded
from app.plan.transcript_in import parse

_OTHERS = ("steps", "argv", "type", "command", "params", "project", "planner", "agent", "continue_of")
_NOT_TAKEN_OVER = frozenset({"model", "budget", "replay"})
"""What a replay has no need of: it calls no model, and spends nothing."""


@dataclass(frozen=True, slots=True)
class ReplayParts:
    """What is asked for. `transcript` is kept beside the run; None: another run's rows are the recording."""

    prompt: str
    agent: dict[str, Any]
    env: dict[str, str]
    files_of: str | None
    transcript: str | None


def asks_for_replay(body: RunFields) -> bool:
    """Whether a body makes a replay.

    Raises:
        Unprocessable: it has a field that only replays have, or one that none has.
    """
    source = [name for name in ("replay_of", "transcript") if getattr(body, name) is not None]
    if not source:
        for name in ("strict", "tools"):
            if getattr(body, name) is not None:
                raise Unprocessable(f"{name} goes with replay_of or transcript.")
        return False
    if len(source) > 1:
        raise Unprocessable("Send replay_of or transcript, not both.")
    for name in _OTHERS:
        if getattr(body, name) is not None:
            raise Unprocessable(f"{name} does not go with {source[0]}: the recording says what is done.")
    return True


def of_run(body: RunFields, run: Run) -> ReplayParts:
    """Replay a run that has ended.

    Raises:
        Unprocessable: no model carried it out.
        Conflict: it has not ended.
    """
    if not is_recorded(run):
        raise Unprocessable("replay_of: no model carried out that run.", code="no_agent")
    if not run.status.terminal:
        raise Conflict(f"replay_of: run {run.run_id} is {run.status}; wait for its end.", code="not_finished")
    agent = {name: value for name, value in (run.agent or {}).items() if name not in _NOT_TAKEN_OVER}
    return ReplayParts(
        prompt=body.prompt or str(run.spec.get("prompt", "")),
        agent=agent | {"replay": {"of": run.run_id, **_way(body)}},
        env=body.env or run.spec.get("env") or {},
        files_of=run.workspace_from,
        transcript=None,
    )


async def of_transcript(body: RunFields, run_id: str) -> ReplayParts:
    """Replay a transcript, which is kept with the new run `run_id`.

    Raises:
        Unprocessable: it can't be read (`bad_transcript`), or can't be replayed by itself.
    """
    text = body.transcript or ""
    found = await asyncio.to_thread(parse, text)
    if found.continues is not None:
        raise Unprocessable(
            "transcript: its run continued another one, whose conversation is not part of it; use replay_of.",
            code="bad_transcript",
        )
    return ReplayParts(
        prompt=body.prompt or found.prompt,
        agent=_checked(found) | {"replay": {"transcript": run_id, **_way(body)}},
        env=body.env,
        files_of=None,
        transcript=text,
    )


def _way(body: RunFields) -> dict[str, Any]:
    return {"strict": body.strict is not False, "tools": body.tools or "real"}


def _checked(found: Recording) -> dict[str, Any]:
    known = AgentIn.model_fields.keys() - _NOT_TAKEN_OVER
    asked = {name: value for name, value in found.agent.items() if name in known}
    try:
        return AgentIn.model_validate(asked).model_dump(exclude_unset=True)
    except ValidationError as error:
        text = f"transcript: what it asks of the agent: {explain(error, AgentIn)}."
        raise Unprocessable(text, code="bad_transcript") from None
