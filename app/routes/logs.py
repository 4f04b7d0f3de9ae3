"""Reading a run's log in pages: for polling, for searching, and for plain text.

`/logs` pages and searches what the database has; `/stream` follows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from app.core.errors import Unprocessable
from app.core.events import Event, EventType
from app.core.log_filter import LogFilter
from app.core.models import Run
from app.routes.auth import CurrentServices, OwnRun
from app.routes.body import (
    MAX_SEQ,
    AnsiParameter,
    CollapseParameter,
    LevelParameter,
    PipeParameter,
    collapses,
)
from app.routes.schemas import LogPage
from app.routes.views import answer
from app.stream.formats import collapse as collapse_updates
from app.stream.history import LogHistory
from tailrun.ansi import strip_ansi

router = APIRouter(tags=["logs"])

MAX_PAGE = 1000


async def last_events(logs: LogHistory, run_id: str, count: int) -> list[Event]:
    """Return the last `count` events of a run, oldest first."""
    return list(deque([event async for event in _tail(logs, run_id, count)], maxlen=count))


async def last_lines(logs: LogHistory, run_id: str, count: int) -> list[str]:
    """Return the last `count` lines of a run as bare text, oldest first."""
    tail = [event async for event in _tail(logs, run_id, count) if event.type is EventType.LOG]
    return [event.content or "" for event in tail][-count:] if count else []


async def _tail(logs: LogHistory, run_id: str, count: int) -> AsyncIterator[Event]:
    """Yield at least the last `count` events, among them the last `count` lines."""
    after: int | None = await logs.tail_cursor(run_id, count) if count else None
    while after is not None:
        page = await logs.page(run_id, after, MAX_PAGE)
        for event in page:
            yield event
        after = page[-1].seq if len(page) == MAX_PAGE else None


@router.get(
    "/v1/runs/{run_id}/logs",
    response_model=LogPage,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
@router.get("/agent/logs/{run_id}", response_model=LogPage, tags=["agent"])
async def page(
    run: OwnRun,
    services: CurrentServices,
    *,
    after: Annotated[int, Query(ge=0, le=MAX_SEQ, description="Only events with a higher `seq`.")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    level: LevelParameter = None,
    stream: PipeParameter = None,
    q: Annotated[
        str | None, Query(max_length=200, description="Lines that contain this, in any case.")
    ] = None,
    format: Annotated[Literal["json", "text"], Query()] = "json",  # noqa: A002 - the parameter's public name
    ansi: AnsiParameter = "keep",
    collapse: CollapseParameter = None,
) -> Response:
    """Read a page of events; `next_after` is null once the run has ended and nothing is left."""
    if q is not None and "\0" in q:
        raise Unprocessable("q must not hold a NUL character.")
    events = await services.logs.page(run.run_id, after, limit, LogFilter(level, stream, q))
    following = _next_after(run, after, limit, events)
    if collapses(collapse, text=format == "text"):
        events, following = _collapsed(events, following, more=len(events) == limit)
    if ansi == "strip":
        events = [replace(event, content=event.content and strip_ansi(event.content)) for event in events]
    if format == "text":
        lines = "".join(f"{event.content}\n" for event in events if event.type is EventType.LOG)
        headers = {} if following is None else {"X-Next-After": str(following)}
        return Response(lines, headers=headers, media_type="text/plain; charset=utf-8")
    return answer({"events": [event.as_dict() for event in events], "next_after": following})


def _collapsed(events: list[Event], following: int | None, *, more: bool) -> tuple[list[Event], int | None]:
    """Leave out updates that are replaced; end before one that the next page may replace, if possible."""
    kept, pending = collapse_updates(events)
    if not more or pending is None or pending == events[0].seq:
        return kept, following
    before = [event for event in events if event.seq < pending]
    return [event for event in kept if event.seq < pending], before[-1].seq


def _next_after(run: Run, after: int, limit: int, events: list[Event]) -> int | None:
    """Say where the next page begins. `run` was read before the page, so its `last_seq` was searched."""
    if len(events) == limit:
        return events[-1].seq
    if run.status.terminal:
        return None
    return max(after, run.last_seq, events[-1].seq if events else 0)
