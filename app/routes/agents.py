"""What users say to agents over HTTP: approvals of steps, messages; and which models there are.

An approval belongs to the run's owner or an admin, and names the arguments that it is about by their hash: a
step whose arguments are others than those that were looked at is not approved.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import AfterValidator, BaseModel, Field

from app.core.agent_records import Decision, InboxMessage, MessageMode
from app.core.clock import now_us
from app.core.errors import Forbidden, NotFound
from app.core.models import StepRecord
from app.db.approval_store import Question
from app.plan.explain import STEP_ID
from app.plan.run_fields import RUN_EXAMPLE, Body, Text
from app.routes.auth import CurrentServices, CurrentUser, OwnRun
from app.routes.body import IdempotencyKey, documents, json_body
from app.routes.views import answer, links, moment
from app.runs.answers import decide, send_message
from app.runs.submit import checked_key

MAX_MESSAGE = 64_000
MAX_NOTE = 2_000
EXAMPLE_HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


class NewDecision(Body):
    """Body of `POST /v1/runs/{run_id}/approvals/{step}`."""

    decision: Literal["approved", "denied"]
    args_sha256: str = Field(
        max_length=64,
        description="`args_sha256` of the approval that you have looked at.",
        examples=[EXAMPLE_HASH],
    )
    note: Annotated[Text, Field(max_length=MAX_NOTE)] | None = Field(
        default=None, description="Why; the agent is told."
    )


class NewMessage(Body):
    """Body of `POST /v1/runs/{run_id}/messages`."""

    content: Annotated[Text, Field(min_length=1, max_length=MAX_MESSAGE), AfterValidator(_said)]
    mode: Literal["next", "interrupt"] = Field(
        default="next",
        description="`next`: read with the next call of the model. `interrupt`: approvals that are open are "
        "denied, so that a run which waits for them reads it at once; a program that runs is not stopped.",
    )


class ApprovalView(BaseModel):
    """A question whether a step may run."""

    run_id: str = Field(examples=[RUN_EXAMPLE])
    step: str = Field(examples=["c3-0"])
    tool: str | None
    args: dict[str, Any] | None = Field(description="What the step would run with; secrets are masked.")
    args_sha256: str = Field(examples=[EXAMPLE_HASH])
    rule: str = Field(description="What asks.")
    asked_at: str
    expires_at: str | None = Field(description="When it counts as denied; null: never.")
    decision: Decision | None = Field(description="Null: not decided yet.")
    by: str | None
    decided_at: str | None
    note: str | None
    links: dict[str, str]


class ApprovalList(BaseModel):
    """Approvals, in the order of asking."""

    items: list[ApprovalView]
    next: None = None


class MessageView(BaseModel):
    """A message to an agent; `k` counts those of its run from 1."""

    run_id: str = Field(examples=[RUN_EXAMPLE])
    k: int
    content: str
    mode: MessageMode
    by: str
    created_at: str


class ModelView(BaseModel):
    """A language model that a run may name."""

    name: str
    model: str = Field(description="Its provider's name for it.")
    dialect: str
    default: bool = Field(description="Whether it carries out runs that name none.")


class ModelList(BaseModel):
    """The models, the default one first; empty: this server carries out no bare prompt."""

    items: list[ModelView]
    next: None = None


router = APIRouter(tags=["agents"])

StepId = Annotated[str, Path(pattern=STEP_ID, description="A step's id.", examples=["c3-0"])]
_DECISION = {"approve": {"decision": "approved", "args_sha256": EXAMPLE_HASH}}
_MESSAGE = {"next": {"content": "Use the numbers of October."}}


@router.get("/v1/approvals", response_model=ApprovalList)
async def list_open(
    user: CurrentUser,
    services: CurrentServices,
    *,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    all_users: Annotated[bool, Query(alias="all", description="All users'; admin only.")] = False,
) -> Response:
    """List what waits for your decision."""
    if all_users and not user.admin:
        raise Forbidden("all=1 needs a token of scope admin.")
    found = await services.approvals.open_of(None if all_users else user.user_id, limit)
    return answer({"items": [_view(each) for each in found], "next": None})


@router.get("/v1/runs/{run_id}/approvals", response_model=ApprovalList)
async def list_of_run(run: OwnRun, services: CurrentServices) -> Response:
    """List what was asked for in a run, decided or not."""
    return answer({"items": [_view(each) for each in await _questions(services, run.run_id)], "next": None})


@router.get("/v1/runs/{run_id}/approvals/{step}", response_model=ApprovalView)
async def show(run: OwnRun, step: StepId, services: CurrentServices) -> Response:
    """Show what a step asks for."""
    return answer(_view(await _question(services, run.run_id, step)))


@router.post(
    "/v1/runs/{run_id}/approvals/{step}",
    response_model=ApprovalView,
    openapi_extra=documents(NewDecision, examples=_DECISION),
)
async def decide_step(
    run: OwnRun,
    step: StepId,
    body: Annotated[NewDecision, json_body(NewDecision)],
    user: CurrentUser,
    services: CurrentServices,
) -> Response:
    """Approve or deny a step; the run continues with the last decision that it waits for."""
    asked = await _question(services, run.run_id, step)
    of = replace(asked.approval, args_sha256=body.args_sha256)
    decided = await decide(services, user, of, approve=body.decision == "approved", note=body.note)
    return answer(_view(replace(asked, approval=decided)))


@router.post(
    "/v1/runs/{run_id}/messages",
    status_code=202,
    response_model=MessageView,
    openapi_extra=documents(NewMessage, examples=_MESSAGE),
)
async def say(
    run: OwnRun,
    body: Annotated[NewMessage, json_body(NewMessage)],
    user: CurrentUser,
    services: CurrentServices,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Write to an agent, or answer its question."""
    new = InboxMessage(
        run_id=run.run_id,
        content=body.content,
        mode=MessageMode(body.mode),
        by=user.user_id,
        created_at=now_us(),
        idempotency_key=checked_key(idempotency_key),
    )
    message = await send_message(services, run, new)
    view = {
        "run_id": message.run_id,
        "k": message.k,
        "content": message.content,
        "mode": message.mode,
        "by": message.by,
        "created_at": moment(message.created_at),
    }
    return answer(view, 202)


@router.get("/v1/models", response_model=ModelList)
async def models(_user: CurrentUser, services: CurrentServices) -> Response:
    """List the language models that a run may name."""
    names = services.models
    items = [
        {
            "name": each.name,
            "model": each.model,
            "dialect": each.dialect,
            "default": each.name == names.default,
        }
        for each in names.models.values()
    ]
    return answer({"items": items, "next": None})


async def _questions(services: CurrentServices, run_id: str) -> list[Question]:
    asked = await services.approvals.of_run(run_id)
    steps: dict[str, StepRecord] = {}
    if asked:
        steps = {step.step_id: step for step in await services.runs.steps(run_id)}
    return [
        Question(each, step and step.tool, step and step.args)
        for each in asked
        for step in (steps.get(each.step_id),)
    ]


async def _question(services: CurrentServices, run_id: str, step: str) -> Question:
    for each in await _questions(services, run_id):
        if each.approval.step_id == step:
            return each
    raise NotFound(f"run {run_id} asks for no approval of step {step}")


def _view(question: Question) -> dict[str, Any]:
    asked = question.approval
    here = links(asked.run_id)["self"]
    return {
        "run_id": asked.run_id,
        "step": asked.step_id,
        "tool": question.tool,
        "args": question.args,
        "args_sha256": asked.args_sha256,
        "rule": asked.rule,
        "asked_at": moment(asked.asked_at),
        "expires_at": moment(asked.expires_at),
        "decision": asked.decision,
        "by": asked.by,
        "decided_at": moment(asked.decided_at),
        "note": asked.note,
        "links": {"self": f"{here}/approvals/{asked.step_id}", "run": here},
    }
