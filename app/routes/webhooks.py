"""The shapes of what is told about webhooks.

How far the webhook of a run has come.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from app.core.errors import NotFound
from app.db.webhook_store import Delivery
from app.routes.auth import CurrentServices, OwnRun
from app.routes.views import answer, moment


class WebhookTry(BaseModel):
    """One try to deliver a webhook."""

    at: str
    status: int | None = Field(description="The HTTP status; null: there was no answer.")
    error: str | None
    ms: int


class WebhookView(BaseModel):
    """How far the webhook of a run has come."""

    url: str
    status: Literal["waiting", "pending", "delivered", "failed"] = Field(
        description="`waiting`: there is nothing to tell yet; `failed`: given up."
    )
    attempts: int
    next_at: str | None
    delivered_at: str | None
    tries: list[WebhookTry] = Field(description="The last 20.")


router = APIRouter(prefix="/v1/runs", tags=["runs"])


@router.get("/{run_id}/webhook", response_model=WebhookView)
async def show(run: OwnRun, services: CurrentServices) -> Response:
    """Show what became of a run's webhook: waiting for the end, pending, delivered or given up."""
    if run.webhook_url is None:
        raise NotFound(f"Run {run.run_id} has no webhook_url.", code="no_webhook")
    return answer(_view(run.webhook_url, await services.webhooks.get(run.run_id)))


def _view(url: str, delivery: Delivery | None) -> dict[str, Any]:
    if delivery is None:
        empty = {"attempts": 0, "next_at": None, "delivered_at": None, "tries": []}
        return {"url": url, "status": "waiting"} | empty
    ended = "delivered" if delivery.delivered_at is not None else "failed"
    return {
        "url": url,
        "status": ended if delivery.next_at is None else "pending",
        "attempts": delivery.attempts,
        "next_at": moment(delivery.next_at),
        "delivered_at": moment(delivery.delivered_at),
        "tries": [tried | {"at": moment(tried["at"])} for tried in delivery.tries],
    }
