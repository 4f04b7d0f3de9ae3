"""What an agent asked its model, what came back, and the whole run as a transcript; all without secrets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from app.agent.folding import asked_for, shown
from app.core.agent_records import CallPurpose, CallRecord, CallStatus
from app.core.errors import NotFound, Unprocessable
from app.plan.run_fields import RUN_EXAMPLE
from app.plan.transcript import is_recorded
from app.routes.auth import CurrentServices, OwnRun
from app.routes.views import Download, answer, links, moment
from app.runs.transcripts import masker_of, transcript

_MICRO = 1_000_000
_MOST = 1_000_000


class CallUsage(BaseModel):
    """Tokens of all tries of a call."""

    input: int
    cached: int
    output: int
    reasoning: int
    estimated: bool


class CallView(BaseModel):
    """One call of the model; `n` counts those of its run from 1."""

    run_id: str = Field(examples=[RUN_EXAMPLE])
    n: int
    agent: str
    purpose: CallPurpose
    status: CallStatus
    attempt: int
    tries: int
    model: str
    dialect: str
    finish: str | None
    usage: CallUsage
    cost_usd: float | None = Field(description="Null: the price is unknown, or nothing was counted.")
    inbox_upto: int = Field(description="The last message of the user that it saw.")
    view: dict[str, Any] | None = Field(description="What of the conversation was left out.")
    request_hash: str
    sent_at: str
    first_at: str | None
    ended_at: str | None
    error: dict[str, Any] | None
    links: dict[str, str]


class CallRequest(BaseModel):
    """What the model was asked, folded anew from the run's rows; notes for one call alone are left out."""

    system: str
    tools: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    continue_of: str | None = Field(description="The run whose conversation comes before these messages.")


class CallDetail(CallView):
    """One call with what was asked and what came back."""

    request: CallRequest
    reply: dict[str, Any] | None = Field(description="As it came; null: there is none.")


class CallList(BaseModel):
    """One page of calls, in order."""

    items: list[CallView]
    next: int | None = Field(description="Send it as `after` for the next page; null: there is none yet.")


router = APIRouter(prefix="/v1/runs", tags=["agents"])


@router.get("/{run_id}/calls", response_model=CallList)
async def list_calls(
    run: OwnRun,
    services: CurrentServices,
    *,
    after: Annotated[int, Query(ge=0, le=_MOST, description="Only calls with a higher `n`.")] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """List the calls of the model that a run has made."""
    found = await services.calls.page(run.run_id, after, limit)
    mask = await asyncio.to_thread(masker_of, services.settings, run)
    following = found[-1].n if len(found) == limit else None
    return answer({"items": [mask(_view(each)) for each in found], "next": following})


@router.get("/{run_id}/calls/{n}", response_model=CallDetail)
async def show_call(
    run: OwnRun, n: Annotated[int, Path(ge=1, le=_MOST, examples=[1])], services: CurrentServices
) -> Response:
    """Show one call: what was asked, as it is folded from the rows, and the reply."""
    calls = await services.calls.of_run(run.run_id)
    this = next((call for call in calls if call.n == n), None)
    if this is None:
        raise NotFound(f"run {run.run_id} has made no call {n}")
    steps = {step.step_id: step for step in await services.runs.steps(run.run_id)}
    messages = await services.inbox.after(run.run_id, 0)
    agent = run.agent or {}

    def body() -> dict[str, Any]:
        prefix: Mapping[str, Any] = next((call.prefix for call in calls if call.prefix), None) or {}
        prompt = str(run.spec.get("prompt", ""))
        turns = asked_for(prompt, agent, calls, steps, messages, n=n)
        request = {
            "system": prefix.get("system", ""),
            "tools": prefix.get("tools", []),
            "messages": [shown(turn) for turn in turns],
            "continue_of": agent.get("continue_of"),
        }
        reply = orjson.loads(this.reply) if this.reply else None
        mask = masker_of(services.settings, run)
        return mask({**_view(this), "request": request, "reply": reply})

    return answer(await asyncio.to_thread(body))


@router.get(
    "/{run_id}/transcript",
    response_class=Response,
    responses={200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}},
)
async def show_transcript(run: OwnRun, services: CurrentServices) -> Response:
    """Download what was recorded of an agent's run, as lines of JSON: enough to replay it."""
    if not is_recorded(run):
        raise Unprocessable("Only a run that a language model carries out has a transcript.", code="no_agent")
    lines = transcript(services, run)
    first = await anext(lines)  # what goes wrong at once is an error's status, not a broken stream
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Download(_with(first, lines), 200, headers, media_type="application/x-ndjson")


async def _with(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for line in rest:
        yield line


def _view(call: CallRecord) -> dict[str, Any]:
    here = links(call.run_id)["self"]
    names = ("run_id", "n", "agent", "purpose", "status", "attempt", "tries", "model", "dialect", "finish")
    names += ("inbox_upto", "view", "request_hash", "error")
    usage = {
        "input": call.input_tokens,
        "cached": call.cached_tokens,
        "output": call.output_tokens,
        "reasoning": call.reasoning_tokens,
        "estimated": call.estimated,
    }
    times = {name: moment(getattr(call, name)) for name in ("sent_at", "first_at", "ended_at")}
    return {
        **{name: getattr(call, name) for name in names},
        **times,
        "usage": usage,
        "cost_usd": None if call.cost_u is None else call.cost_u / _MICRO,
        "links": {"self": f"{here}/calls/{call.n}", "run": here},
    }
