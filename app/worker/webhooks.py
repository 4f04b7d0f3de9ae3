"""Delivers webhooks: one worker leads, sends what is due, and tries again with growing pauses.

At least once: a worker that dies between the answer and its note sends again, with the same
`webhook-id`. Leadership only saves work; a delivery belongs to who moved its `next_at`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import urlsplit

import orjson
import structlog

from app.config import Settings
from app.db.engine import Database
from app.db.run_store import RunStore
from app.db.webhook_store import Delivery, WebhookStore
from app.errors import StorageError
from app.models import Run, format_ts
from app.telemetry import WEBHOOKS
from app.worker.leadership import Leadership
from app.worker.outcome import Backoff
from app.worker.webhook_sender import Sent, WebhookSender

LOOK_EVERY_S = 1.0
_AT_ONCE, _A_HOST, _LOOK_AT = 16, 4, 500
_MARGIN_S = 20
"""How much longer than a try may take a delivery is taken for; then another worker takes it."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Retry:
    """Tries in all, and the pauses between them."""

    max_attempts: int
    backoff: Backoff


class Webhooks:
    """One worker's part in the deliveries. `sender` None: no secret is set, so nothing is sent."""

    def __init__(
        self,
        store: WebhookStore,
        runs: RunStore,
        leadership: Leadership,
        sender: WebhookSender | None,
        retry: Retry,
        *,
        timeout_s: float,
        clock: Callable[[], int],
    ) -> None:
        self._store, self._runs, self._sender, self._retry = store, runs, sender, retry
        self._leadership = leadership
        self._taken_us = int((timeout_s + _MARGIN_S) * 1_000_000)
        self._clock = clock
        self._sending: dict[asyncio.Task[None], str] = {}

    async def run(self) -> None:
        """Send what is due until cancelled; a server that is away only delays it."""
        try:
            while True:
                try:
                    if self._sender is not None and await self._leadership.held():
                        await self.send_due(self._sender)
                except StorageError as error:
                    log.warning("webhooks wait", error=str(error))
                await self._pause()
        finally:
            for task in self._sending:
                task.cancel()

    async def send_due(self, sender: WebhookSender) -> int:
        """Begin to send as many due deliveries as there is room for; return how many."""
        began = 0
        room = _AT_ONCE - len(self._sending)
        busy = Counter(self._sending.values())
        for delivery in await self._store.due(self._clock(), _LOOK_AT) if room > 0 else ():
            host = _host(delivery.url)
            if busy[host] >= _A_HOST:  # a receiver that does not answer keeps nobody else's waiting
                continue
            until = self._clock() + self._taken_us
            if await self._store.take(delivery, until):
                task = asyncio.create_task(self._deliver(sender, delivery, until))
                self._sending[task] = host
                task.add_done_callback(self._sending.pop)
                busy[host] += 1
                began += 1
            if began >= room:
                break
        return began

    async def _pause(self) -> None:
        """Wait a second, or until there is room again."""
        if len(self._sending) >= _AT_ONCE:
            await asyncio.wait(self._sending, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(LOOK_EVERY_S)

    async def _deliver(self, sender: WebhookSender, delivery: Delivery, until: int) -> None:
        try:
            run = await self._runs.get(delivery.run_id)
            if run is None:
                return
            at, began = self._clock(), time.monotonic()
            sent = await sender.send(delivery.url, message_id(run.run_id), payload(run))
            took_ms = round((time.monotonic() - began) * 1000)
            tried = {"at": at, "status": sent.status, "error": sent.error, "ms": took_ms}
            await self._settle(delivery, until, sent, tried)
        except StorageError as error:
            log.warning("a webhook's try is not written down, it is tried again", error=str(error))

    async def _settle(self, delivery: Delivery, until: int, sent: Sent, tried: dict[str, Any]) -> None:
        over = delivery.attempts + 1 >= self._retry.max_attempts or sent.unwanted
        next_at = None
        if not (sent.delivered or over):
            next_at = self._clock() + self._retry.backoff.delay_us(delivery.attempts)
        kept = await self._store.settle(delivery, until, tried, next_at=next_at, delivered=sent.delivered)
        if not kept:
            return
        outcome = "delivered" if sent.delivered else "gave_up" if over else "retried"
        WEBHOOKS.labels(outcome).inc()
        about = {"run_id": delivery.run_id, "status": sent.status, "error": sent.error}
        (log.info if sent.delivered else log.warning)(f"webhook {outcome}", **about)


def open_webhooks(
    settings: Settings,
    db: Database,
    runs: RunStore,
    leadership: Leadership,
    *,
    clock: Callable[[], int],
) -> Webhooks:
    """Make what the settings ask for."""
    sender = None
    if settings.webhook_secret is not None:
        sender = WebhookSender(
            settings.webhook_secret.get_secret_value(),
            timeout_s=settings.webhook_timeout_s,
            allow_private=settings.webhook_allow_private,
        )
    dice = Random()  # noqa: S311 - jitter
    pauses = Backoff(settings.webhook_retry_base_s, settings.webhook_retry_max_s, dice)
    return Webhooks(
        WebhookStore(db),
        runs,
        leadership,
        sender,
        Retry(settings.webhook_max_attempts, pauses),
        timeout_s=settings.webhook_timeout_s,
        clock=clock,
    )


def message_id(run_id: str) -> str:
    """Return the `webhook-id`, the same for every try: a run has one end."""
    return f"msg_{run_id}"


def payload(run: Run) -> bytes:
    """Return the body: which run ended, when, and how."""
    moments = ("created_at", "started_at", "ended_at")
    data: dict[str, Any] = {
        "run_id": run.run_id,
        "user_id": run.user_id,
        "kind": run.kind,
        "project": run.project,
        "type": run.type,
        "labels": run.labels,
        "status": run.status,
        "exit_code": run.exit_code,
        "error": run.error,
        "attempt": run.attempt,
        "log_lines": run.log_lines,
        **{name: _moment(getattr(run, name)) for name in moments},
    }
    return orjson.dumps({"type": f"run.{run.status}", "timestamp": _moment(run.ended_at), "data": data})


def _host(url: str) -> str:
    """Return who is asked; nobody for what is no address, which the sender finds as well."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _moment(us: int | None) -> str | None:
    return None if us is None else format_ts(us)
