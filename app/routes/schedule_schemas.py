"""The shapes of schedules over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.cron import MAX_CRON, MAX_TIMEZONE
from app.routes.schemas import Body, NewRun, Text


class NewSchedule(Body):
    """Body of `POST /v1/schedules`."""

    cron: Annotated[Text, Field(min_length=1, max_length=MAX_CRON)] = Field(
        description="Minute, hour, day of month, month, day of week.", examples=["30 2 * * MON-FRI"]
    )
    timezone: Annotated[Text, Field(min_length=1, max_length=MAX_TIMEZONE)] = Field(
        default="UTC", description="Whose clock the expression means.", examples=["Europe/Zurich"]
    )
    run: NewRun = Field(description="What each run is made of, as `POST /v1/runs` takes it.")


class ScheduleView(BaseModel):
    """A schedule. Times are RFC 3339 with microseconds, in UTC."""

    schedule_id: str
    user_id: str
    cron: str
    timezone: str
    run: dict[str, Any] = Field(description="What its runs are made of; never the `env`.")
    created_at: str
    next_at: str | None = Field(description="When it makes the next run; null: never again.")
    last_at: str | None = Field(description="The time that its last run was for.")
    last_run_id: str | None
    last_error: str | None = Field(description="Why the last tick made no run; null: it made one.")


class ScheduleList(BaseModel):
    """One page of schedules, newest first."""

    items: list[ScheduleView]
    next: str | None = Field(description="Send it as `cursor` for the next page; null: there is none.")
