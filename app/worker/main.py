"""The worker process: its life from the first lease to the last entry given back.

start    wait for Redis and the database, take a lease
serve    fill the slots (`app.worker.slots`), with the periodic work beside it
drain    on SIGTERM: claim no more, let runs finish for a while, give the rest back; on RETIRE let all finish
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Callable

import structlog

from app.config import Settings
from app.core.loop_guard import answering
from app.core.parent_death import RETIRE
from app.core.periodic import Periodic, going_on
from app.core.telemetry import (
    MASK_LOG,
    OF_API,
    configure_logging,
    leave_out,
    log_retired_settings,
    log_the_unexpected,
)
from app.execution.executor import CannotRun
from app.llm.models_file import BadModels
from app.plan.task_types import BadTasksFile
from app.redis.address import BadAddress, RedisAddress
from app.redis.lease import LeaseClient
from app.worker.control import LISTEN_AGAIN_S, REREAD_EVERY_S, Control
from app.worker.health import HealthServer
from app.worker.lease import Lease
from app.worker.ownership import ADOPT_EVERY_S, CHECK_EVERY_S, Ownership, Watch
from app.worker.slots import Slots
from app.worker.wiring import Wiring

log = structlog.get_logger()


class Worker:
    """One worker; `run` returns when it has drained."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._id = f"{name}-{os.getpid()}-{secrets.token_hex(3)}"
        self._draining, self._told_to_stop = asyncio.Event(), asyncio.Event()
        self._parts = parts = Wiring(settings, self._id)
        self._in_flight, self._readiness = parts.in_flight, parts.readiness
        self._slots = Slots(parts.bench, parts.in_flight, parts.resources, parts.readiness, self._draining)

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or RETIRE, then drain."""
        MASK_LOG.set(self._parts.bench.secrets.shared.text)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(RETIRE, self._retire)
        health = HealthServer(self._settings.worker.host, self._settings.worker.port, self._ready)
        await health.start()
        try:
            if await self._readiness.wait(self._draining):
                await self._parts.executor.start()
                self._readiness.remark()
                await self._serve()
        finally:
            await health.stop()
            await self._parts.close()

    async def _ready(self) -> tuple[bool, str]:
        if self._draining.is_set():
            return False, "draining"
        return await self._readiness.probe(len(self._in_flight))

    async def _serve(self) -> None:
        lease, ownership = self._owning()
        control = Control(self._parts.signals, self._in_flight, ownership.reread)
        work = [
            Periodic("ownership", CHECK_EVERY_S, ownership.check, again_most_s=CHECK_EVERY_S),
            Periodic("orphans", ADOPT_EVERY_S, ownership.adopt_orphans),
            Periodic("control", LISTEN_AGAIN_S, control.listen, again_most_s=LISTEN_AGAIN_S),
            Periodic("cancel requests", REREAD_EVERY_S, ownership.reread, again_most_s=REREAD_EVERY_S),
            *self._parts.periodic(),
        ]
        lease.start()
        try:
            async with going_on(work):
                log.info("worker ready", worker_id=self._id, slots=self._settings.worker.concurrency)
                await self._slots.fill()
                await self._slots.drain(self._told_to_stop)
        finally:
            await asyncio.to_thread(lease.stop)
        log.info("worker gone", worker_id=self._id)

    def _owning(self) -> tuple[Lease, Ownership]:
        """Make the lease, and who asks whether we are still the owner: each tells the other."""
        settings, heartbeat = self._settings, self._parts.executor.heartbeat
        watch = Watch(settings.worker.lease_s, lambda: lease.age_s, heartbeat, self._slots.adopt)
        ownership = Ownership(self._in_flight, self._parts.queue, self._parts.runs, self._id, watch)
        client = LeaseClient(
            RedisAddress.of(settings.redis), settings.redis.prefix, self._id, settings.worker.lease_s
        )
        loop = asyncio.get_running_loop()
        lease = Lease(client, loop, on_renewed=heartbeat, on_held=ownership.held)
        return lease, ownership

    def _stop(self) -> None:
        if not self._told_to_stop.is_set():
            log.info("draining", in_flight=len(self._in_flight), seconds=self._settings.worker.drain_s)
        self._told_to_stop.set()
        self._draining.set()

    def _retire(self) -> None:
        if not self._draining.is_set():
            log.info("retiring, runs may finish", in_flight=len(self._in_flight))
        self._draining.set()


def serve(settings: Settings, name: str = "") -> int:
    """Run a worker until it is told to stop; return the exit code.

    Its id begins with `name`; empty: with that of this machine.
    """
    configure_logging(settings.own_log, "worker")
    leave_out(OF_API)
    log_retired_settings()
    log_the_unexpected()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_guarded(Worker(settings, name or socket.gethostname())))
    except (OSError, BadAddress, BadModels, BadTasksFile, CannotRun) as error:
        log.critical("worker could not start", error=str(error))
        return 1
    return 0


async def _guarded(worker: Worker) -> None:
    async with answering():
        await worker.run()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
