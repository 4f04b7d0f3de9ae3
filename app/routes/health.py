"""Whether this process lives, whether it can serve, and its figures. No token is needed here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import HTTPConnection

from app.core.clock import now_us
from app.core.telemetry import QUEUE_DEPTH, QUEUE_OLDEST_AGE, READY, RUNS, WORKERS, get_logger
from app.routes.auth import CurrentServices, admin_calls
from app.routes.run_counts import RunCounts
from app.routes.schemas import Health, Readiness
from app.routes.views import answer
from app.runs.readiness import OK, StoreCheck, answered, trouble
from app.runs.services import Services

router = APIRouter(tags=["health"])

_log = get_logger(__name__)

FAILED = "failed"
_LOOK_EVERY_S, _LOOK_AGAIN_S = 5.0, 1.0


class ReadyCheck:
    """Whether this process can serve: its stores and the store of files answer, and it is not stopping."""

    def __init__(self, services: Services) -> None:
        self._draining = services.draining
        self._stores = StoreCheck(services.settings.data.effective_database_url, services.db, services.redis)
        self._files = OneAtATime(services.workspaces.ping)
        self._before: dict[str, str] = {}
        self._logged: list[str] = []

    @property
    def remarks(self) -> list[str]:
        """What is no reason to be not ready, but a person should know."""
        return self._stores.remarks

    async def __call__(self) -> dict[str, str]:
        """Return `ok`, or what is wrong, of each."""
        stores, files = await asyncio.gather(self._stores(), answered(self._files))
        return stores | {"files": files} | ({"process": "stopping"} if self._draining.is_set() else {})

    async def look(self) -> None:
        """Log what is missing, whenever that changes."""
        before, checks = self._before, await self()
        for name, result in checks.items():
            if result != OK and before.get(name) in {None, OK}:
                _log.warning(f"not ready, trying again: {result}", waiting_for=name)
        if not trouble(checks) and checks != before:
            _log.info("ready")
        self._before = checks
        for remark in self.remarks:
            if remark not in self._logged:
                _log.warning(remark)
        self._logged = list(self.remarks)

    def again_s(self) -> float:
        """Return in how many seconds to look again."""
        return _LOOK_AGAIN_S if trouble(self._before) or not self._before else _LOOK_EVERY_S


class OneAtATime:
    """Asks a store that may hang: an answer is waited for again, and no second question is sent."""

    def __init__(self, ask: Callable[[], Awaitable[None]]) -> None:
        self._ask = ask
        self._asking: asyncio.Future[None] | None = None

    async def __call__(self) -> None:
        """Wait for an answer; who waits no longer leaves the question as it is."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask())
            self._asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._asking)


def ready_check(conn: HTTPConnection) -> ReadyCheck:
    """Return the check of the app that serves this request."""
    return conn.app.state.ready_check


def run_counts(conn: HTTPConnection) -> RunCounts:
    """Return the counts of the app that serves this request."""
    return conn.app.state.run_counts


@router.get("/healthz", response_model=Health)
async def healthz() -> Response:
    """Say that the process answers, whatever else is down."""
    return answer({"status": OK})


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(
    conn: HTTPConnection, services: CurrentServices, check: Annotated[ReadyCheck, Depends(ready_check)]
) -> Response:
    """Ask Redis, the database and the store of files what writing needs; to an admin also say why not."""
    checks, remarks = await check(), check.remarks
    ready = not trouble(checks)
    if not await admin_calls(conn, services):
        checks = {name: result if result == OK else FAILED for name, result in checks.items()}
        remarks = []
    return answer({"ready": ready, "checks": checks, "remarks": remarks}, 200 if ready else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(
    services: CurrentServices,
    check: Annotated[ReadyCheck, Depends(ready_check)],
    counts: Annotated[RunCounts, Depends(run_counts)],
) -> Response:
    """Return all figures in Prometheus' text format; what cannot be asked just now keeps its last value."""
    await asyncio.gather(
        answered(lambda: _count_runs(services, counts)),
        answered(lambda: _count_queue(services)),
        _count_ready(check),
    )
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _count_runs(services: Services, counts: RunCounts) -> None:
    for status, count in (await counts.look()).items():
        RUNS.labels(status).set(count)
    oldest = await services.runs.oldest_queued_at()
    QUEUE_OLDEST_AGE.set(0 if oldest is None else max(0, now_us() - oldest) / 1_000_000)


async def _count_ready(check: ReadyCheck) -> None:
    checks = await check()
    for name in ("database", "redis", "files"):
        READY.labels(name).set(checks[name] == OK)


async def _count_queue(services: Services) -> None:
    depth = await services.queue.depth()
    places = {
        "pending": depth.pending,
        "delayed": depth.delayed,
        "processing": depth.in_flight,
        "dead": depth.dead,
    }
    for place, entries in places.items():
        QUEUE_DEPTH.labels(place).set(entries)
    WORKERS.set(sum(left > 0 for left in depth.workers.values()))
