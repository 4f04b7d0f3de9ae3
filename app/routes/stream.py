"""Following a run over HTTP: `curl -N`, EventSource, ndjson or bare text; and downloading it.

Everything that can be refused (token, run, parameters, the limit) is refused before the
stream opens, with the status of that.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from app.core.errors import Unprocessable
from app.core.log_filter import LogFilter
from app.core.models import Run
from app.routes.auth import CurrentServices, QueriedRun, StreamRun, StreamUser
from app.routes.body import (
    MAX_SEQ,
    AnsiParameter,
    CollapseParameter,
    LevelParameter,
    PipeParameter,
    collapses,
    whole_number,
)
from app.routes.stream_response import SEND_TIMEOUT_S, StreamResponse
from app.runs.services import Services
from app.stream.formats import Format, accepted, encoding, replay_encoding
from app.stream.reader import Reader

router = APIRouter(tags=["stream"])

_MAX_TAIL = 1_000_000
LastEventId = Annotated[str | None, Header(description="Wins over `after` and `tail`.")]
After = Annotated[int | None, Query(ge=0, le=MAX_SEQ, description="Only events with a higher `seq`.")]
Tail = Annotated[int | None, Query(ge=0, le=_MAX_TAIL, description="Begin with the last N lines.")]
Follow = Annotated[bool, Query(description="0: what is there, then the end.")]
Form = Annotated[Format | None, Query(description="Default: `Accept`, else sse.")]
_FILE_ENDS = {Format.TEXT: "log", Format.NDJSON: "ndjson", Format.SSE: "sse"}
_DESCRIPTION: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The run's events, until its `end`.",
        "content": {
            "text/event-stream": {"schema": {"type": "string"}},
            "application/x-ndjson": {"schema": {"type": "string"}},
            "text/plain": {"schema": {"type": "string"}},
        },
    },
    204: {"description": "The run has ended, and the client has all of it: do not reconnect."},
}


@router.get("/v1/runs/{run_id}/stream", response_class=Response, responses=_DESCRIPTION)
@router.get("/agent/logs/{run_id}/stream", response_class=Response, responses=_DESCRIPTION, tags=["agent"])
@router.get("/runs/{run_id}/logs/stream", response_class=Response, responses=_DESCRIPTION)
@router.get("/api/v1/operations/{run_id}/stream", response_class=Response, responses=_DESCRIPTION)
@router.head("/v1/runs/{run_id}/stream", include_in_schema=False)
@router.head("/agent/logs/{run_id}/stream", include_in_schema=False)
@router.head("/runs/{run_id}/logs/stream", include_in_schema=False)
@router.head("/api/v1/operations/{run_id}/stream", include_in_schema=False)
async def stream_events(
    request: Request,
    user: StreamUser,
    run: StreamRun,
    services: CurrentServices,
    *,
    last_event_id: LastEventId = None,
    after: After = None,
    tail: Tail = None,
    follow: Follow = True,
    format: Form = None,  # noqa: A002 - the public name
    level: LevelParameter = None,
    stream: PipeParameter = None,
    ansi: AnsiParameter = "keep",
    collapse: CollapseParameter = None,
) -> Response:
    """Stream a run's events from a cursor on, live, until its `end`."""
    cursor = await _cursor(services, run, last_event_id, after, tail)
    ended = run.status.terminal
    if not ended:
        cursor = await services.hub.within(run, cursor)
    if follow and ended and cursor >= run.last_seq:
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    services.streams.admit(user.user_id)
    form = format or accepted(request.headers.get("accept", ""))
    wanted = LogFilter(level, stream)
    view = {"strip": ansi == "strip", "collapse": collapses(collapse, text=form is Format.TEXT)}
    top = run.last_seq if ended or follow else await services.hub.top(run.run_id)

    @contextmanager
    def opened() -> Generator[Reader]:
        opening = (
            services.hub.follow(run.run_id, cursor, encoding(form, wanted, **view))
            if follow and not ended
            else services.hub.replay(run.run_id, cursor, top, replay_encoding(form, wanted, **view))
        )
        with services.streams.place(user.user_id, user.rests_on) as place, opening as reader:
            place.end = reader.close
            yield reader

    return StreamResponse(
        opened,
        form,
        whole=not follow,
        ping_s=services.settings.stream.ping_s,
        send_timeout_s=SEND_TIMEOUT_S,
        draining=services.draining,
        headers={} if follow else _as_file(run, form),
    )


@router.get("/logs/stream", response_class=Response, responses=_DESCRIPTION)
@router.head("/logs/stream", include_in_schema=False)
async def stream_of(
    request: Request,
    user: StreamUser,
    run: QueriedRun,
    services: CurrentServices,
    *,
    last_event_id: LastEventId = None,
    after: After = None,
    tail: Tail = None,
    follow: Follow = True,
    format: Form = None,  # noqa: A002 - the public name
    level: LevelParameter = None,
    stream: PipeParameter = None,
    ansi: AnsiParameter = "keep",
    collapse: CollapseParameter = None,
) -> Response:
    """Stream the run that `?run_id=` names."""
    return await stream_events(
        *(request, user, run, services),
        last_event_id=last_event_id,
        after=after,
        tail=tail,
        follow=follow,
        format=format,
        level=level,
        stream=stream,
        ansi=ansi,
        collapse=collapse,
    )


async def _cursor(
    services: Services, run: Run, last_event_id: str | None, after: int | None, tail: int | None
) -> int:
    """Return the seq after which the stream begins: `Last-Event-ID`, else `after`, else `tail`, else 0."""
    if last_event_id:
        last = whole_number(last_event_id, MAX_SEQ)
        if last is None:
            raise Unprocessable(f"Last-Event-ID must be the `seq` of an event, not {last_event_id[:64]!r}.")
        return last
    if after is not None:
        return after
    if tail is not None:
        return await services.logs.tail_cursor(run.run_id, tail) if tail else run.last_seq
    return 0


def _as_file(run: Run, form: Format) -> dict[str, str]:
    if form is Format.SSE:
        return {}
    return {"Content-Disposition": f'attachment; filename="{run.run_id}.{_FILE_ENDS[form]}"'}
