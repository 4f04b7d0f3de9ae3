"""Cancelling a run, in whatever state it is: used over HTTP and by `STOP` on a WebSocket.

The request is a timestamp in the row, which the owner re-reads; the signal only makes it
faster. A run whose owner is dead is ended here, in the database.
"""

from __future__ import annotations

import contextlib

from app.core.clock import now_us
from app.core.errors import LostOwnership, NotFound, StorageError
from app.core.models import Run, RunStatus
from app.core.telemetry import get_logger
from app.runs.services import Services
from app.runs.submit import announce
from app.runs.take_over import OrphanEnd
from tailrun.process.errors import ErrorCode, RunFailure

_log = get_logger(__name__)


async def request_cancel(services: Services, run_id: str) -> Run:
    """Ask a run to end; return it as it is then. A finished run is left as it is.

    Without Redis the request is still valid: the owner reads it with its next write.
    """
    seen = await services.runs.get(run_id)
    changed = await services.runs.request_cancel(run_id, now_us())
    run = changed.run
    if changed.events:
        _log.info("run cancelled while no worker had it", run_id=run_id)
        await announce(services, changed.events)
        await _forget(services, seen)
    if run.status is not RunStatus.RUNNING:
        return run
    try:
        await services.publisher.signal(run_id, "STOP")
        if run.worker_id is None or not await services.queue.worker_gone(run.worker_id):
            return run
        return await _end_orphan(services, run)
    except StorageError as error:
        _log.warning("cancel is in the row only", run_id=run_id, error=str(error))
        return run


async def _end_orphan(services: Services, seen: Run) -> Run:
    """End a run whose owner's lease is dead; whoever took it over meanwhile has read the request."""
    failure = RunFailure(ErrorCode.CANCELLED, "Cancelled; its worker was gone.")
    orphans = OrphanEnd(services.runs, services.publisher, services.tail)
    with contextlib.suppress(LostOwnership):
        events = await orphans.end(seen, RunStatus.CANCELLED, failure, now_us())
        if events is not None:
            _log.info("run cancelled for a dead worker", run_id=seen.run_id, worker_id=seen.worker_id)
            await announce(services, events)
    return await _again(services, seen.run_id)


async def _forget(services: Services, seen: Run | None) -> None:
    """Take a run that waited for its time out of Redis; left there, it would be dropped when due."""
    try:
        if seen is not None:
            await services.queue.forget_delayed(seen)
    except StorageError as error:
        _log.warning("delayed entry left in redis", error=str(error))


async def _again(services: Services, run_id: str) -> Run:
    run = await services.runs.get(run_id)
    if run is None:
        raise NotFound(f"There is no run {run_id!r}.")
    return run
