"""The shapes of what is told about webhooks."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


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
        description="`waiting`: the run has not ended; `failed`: given up."
    )
    attempts: int
    next_at: str | None
    delivered_at: str | None
    tries: list[WebhookTry] = Field(description="The last 20.")
