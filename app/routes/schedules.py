"""The shapes of schedules over HTTP.

Schedules: runs that are made again and again, at the times of a cron expression.

A worker makes them (`app.maintenance.scheduler`); here they are kept, checked by the code that
checks `POST /v1/runs`, so that what a schedule will make is known to be right today.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import AfterValidator, BaseModel, Field

from app.core.clock import now_us
from app.core.errors import Forbidden, NotFound, Unprocessable
from app.db.schedule_store import Schedule
from app.plan.cron import MAX_CRON, MAX_TIMEZONE, check_steps, next_tick
from app.plan.run_fields import Body, Text
from app.routes.auth import CurrentServices, CurrentUser
from app.routes.body import CursorParameter, IdempotencyKey, PageLimit, documents, json_body, made_before
from app.routes.schemas import NewRun
from app.routes.views import answer, moment
from app.runs.submit import checked_key, compose


class NewSchedule(Body):
    """Body of `POST /v1/schedules`."""

    cron: Annotated[Text, Field(min_length=1, max_length=MAX_CRON)] = Field(
        description="Minute, hour, day of month, month, day of week; or `@daily` and its like.",
        examples=["30 2 * * MON-FRI"],
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


router = APIRouter(prefix="/v1/schedules", tags=["schedules"])

_KEYS = uuid.UUID("6f0d6c1e-5a51-4c0e-8a0f-9d2f5f1b7a34")
ScheduleId = Annotated[str, Path(max_length=64, description="A schedule's id."), AfterValidator(str.lower)]
_EXAMPLES = {
    "nightly": {
        "cron": "30 2 * * *",
        "timezone": "Europe/Zurich",
        "run": {"argv": ["python", "-c", "print('good night')"]},
    }
}


@router.get("", response_model=ScheduleList)
async def list_schedules(
    user: CurrentUser,
    services: CurrentServices,
    *,
    limit: PageLimit = 50,
    cursor: CursorParameter = None,
    all_users: Annotated[bool, Query(alias="all", description="All users' schedules; admin only.")] = False,
) -> Response:
    """List your schedules, newest first."""
    if all_users and not user.admin:
        raise Forbidden("all=1 needs a token of scope admin.")
    owner = None if all_users else user.user_id
    found, following = await services.schedules.page(user_id=owner, limit=limit, cursor=cursor)
    return answer({"items": [_view(schedule) for schedule in found], "next": following})


@router.post(
    "",
    status_code=201,
    response_model=ScheduleView,
    responses=made_before(ScheduleView),
    openapi_extra=documents(NewSchedule, examples=_EXAMPLES),
)
async def create(
    body: Annotated[NewSchedule, json_body(NewSchedule)],
    user: CurrentUser,
    services: CurrentServices,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make a schedule; `run` is what `POST /v1/runs` takes, and is checked now."""
    if not body.run.start or body.run.run_at is not None:
        raise Unprocessable("run: a schedule says itself when its runs start; leave out start and run_at.")
    if body.run.continue_of is not None:
        raise Unprocessable("run: continue_of follows one run once; a schedule makes many.")
    if body.run.replay_of is not None or body.run.transcript is not None:
        raise Unprocessable("run: a replay is made once; a schedule makes many.")
    new = await compose(services, user, body.run, start=True)
    now = now_us()
    check_steps(body.cron)
    first = next_tick(body.cron, body.timezone, now)
    if first is None:
        raise Unprocessable(f"cron {body.cron!r} names no time in the next 50 years.")
    schedule = Schedule(
        schedule_id=_new_id(user.user_id, checked_key(idempotency_key)),
        user_id=user.user_id,
        cron=body.cron,
        timezone=body.timezone,
        run=new.definition(),
        created_at=now,
        next_at=first,
    )
    kept = await services.schedules.create(schedule)
    return answer(_view(kept), 201 if kept.created_at == now else 200)


@router.get("/{schedule_id}", response_model=ScheduleView)
async def show(schedule_id: ScheduleId, user: CurrentUser, services: CurrentServices) -> Response:
    """Show a schedule: when it fires next, when it last did, and the run that it made."""
    schedule = await services.schedules.get(schedule_id, None if user.admin else user.user_id)
    if schedule is None:
        raise _no_schedule(schedule_id)
    return answer(_view(schedule))


@router.delete("/{schedule_id}", status_code=204)
async def drop(schedule_id: ScheduleId, user: CurrentUser, services: CurrentServices) -> Response:
    """Delete a schedule: it makes no run from now on; those that it made stay."""
    if not await services.schedules.delete(schedule_id, None if user.admin else user.user_id):
        raise _no_schedule(schedule_id)
    return Response(status_code=204)


def _new_id(user_id: str, key: str | None) -> str:
    """Return an id; a key makes the same one again, and so one schedule."""
    return str(uuid.uuid4() if key is None else uuid.uuid5(_KEYS, f"{user_id}\n{key}"))


def _no_schedule(schedule_id: str) -> NotFound:
    return NotFound(f"There is no schedule {schedule_id[:64]!r}.")


def _view(schedule: Schedule) -> dict[str, Any]:
    """Return a schedule; `run` reads as it may be posted, but for the environment, which stays here."""
    kept = {name: value for name, value in schedule.run.items() if name not in {"kind", "spec"}}
    spec = {name: value for name, value in schedule.run.get("spec", {}).items() if name != "env"}
    return {
        "schedule_id": schedule.schedule_id,
        "user_id": schedule.user_id,
        "cron": schedule.cron,
        "timezone": schedule.timezone,
        "run": spec | {name: value for name, value in kept.items() if value is not None},
        "created_at": moment(schedule.created_at),
        "next_at": moment(schedule.next_at),
        "last_at": moment(schedule.last_at),
        "last_run_id": schedule.last_run_id,
        "last_error": schedule.last_error,
    }
