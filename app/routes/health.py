"""Whether this process lives, whether it can serve, and its figures. Nobody needs a token here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import HTTPConnection

from app.core.clock import now_us
from app.core.errors import StorageError
from app.core.telemetry import QUEUE_DEPTH, QUEUE_OLDEST_AGE, READY, RUNS, WORKERS, get_logger
from app.db.migrate import ensure_current
from app.redis.inspect import ServerReport
from app.routes.auth import CurrentServices, admin_calls
from app.routes.run_counts import RunCounts
from app.routes.schemas import Health, Readiness
from app.routes.views import answer
from app.runs.services import Services

router = APIRouter(tags=["health"])

_log = get_logger(__name__)

OK, FAILED = "ok", "failed"
_TIMEOUT_S = 2.0
_LOOK_EVERY_S, _LOOK_AGAIN_S = 5.0, 1.0


class ReadyCheck:
    """Asks everything that is needed, at the same time, for at most 2 s."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._server_report = ServerReport(services.redis)
        self.remarks: list[str] = []
        """What is no reason to be not ready, but a person should know."""
        self._migrated = False  # stays true once it was: nothing migrates down under a running server
        self._before: dict[str, str] = {}
        self._said: list[str] = []

    async def __call__(self) -> dict[str, str]:
        """Return `ok`, or what is wrong, of each."""
        database, redis = await asyncio.gather(_ask(self._database), _ask(self._services.redis.ping))
        checks = {"database": database, "redis": redis}
        if redis == OK:
            self.remarks = await self._server_report.remarks()
        if self._services.draining.is_set():
            checks["process"] = "stopping"
        return checks

    async def look(self) -> None:
        """Say in the log what is missing, whenever that changes."""
        before, checks = self._before, await self()
        for name, result in checks.items():
            if result != OK and before.get(name) in {None, OK}:
                _log.warning(f"not ready, trying again: {result}", waiting_for=name)
        if _ready(checks) and checks != before:
            _log.info("ready")
        self._before = checks
        for remark in self.remarks:
            if remark not in self._said:
                _log.warning(remark)
        self._said = self.remarks

    def again_s(self) -> float:
        """Return in how many seconds to look again."""
        return _LOOK_EVERY_S if _ready(self._before) else _LOOK_AGAIN_S

    async def _database(self) -> None:
        await self._services.db.ping()
        if self._migrated:
            return
        url = self._services.settings.effective_database_url
        await asyncio.to_thread(ensure_current, url)
        self._migrated = True


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
    """Ask Redis and the database, and say what does not answer; to an admin also why, and what is amiss."""
    checks, remarks = await check(), check.remarks
    ready = _ready(checks)
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
        _ask(lambda: _count_runs(services, counts)), _ask(lambda: _count_queue(services)), _count_ready(check)
    )
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _ready(checks: Mapping[str, str]) -> bool:
    return all(result == OK for result in checks.values())


async def _ask(what: Callable[[], Awaitable[Any]]) -> str:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await what()
    except TimeoutError:
        return f"no answer within {_TIMEOUT_S:g} s"
    except StorageError as error:
        return str(error)
    return OK


async def _count_runs(services: Services, counts: RunCounts) -> None:
    for status, count in (await counts.look()).items():
        RUNS.labels(status).set(count)
    oldest = await services.runs.oldest_queued_at()
    QUEUE_OLDEST_AGE.set(0 if oldest is None else max(0, now_us() - oldest) / 1_000_000)


async def _count_ready(check: ReadyCheck) -> None:
    checks = await check()
    for name in ("database", "redis"):
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
