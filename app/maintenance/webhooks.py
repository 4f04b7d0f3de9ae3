"""Delivers webhooks: one worker leads, sends what is due, and tries again with growing pauses.

At least once: a worker that dies between the answer and its note sends again, with the same
`webhook-id`. Leadership only saves work; a delivery belongs to who moved its `next_at`.

One webhook, sent once: signed, to the very address that was checked, bounded in time and size.

The signature is that of Standard Webhooks (standardwebhooks.com, version 1.0): an HMAC-SHA256 over
`<id>.<timestamp>.<body>`. The name is resolved here and the connection made to the checked address
itself, so that no second look-up can lead elsewhere; TLS still asks for the name's certificate.
Proxies of the environment are not used, for they would resolve the name themselves.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx2
import orjson
import structlog

from app.config import WebhookSettings
from app.core.address_ranges import is_public
from app.core.clock import format_ts, now_us
from app.core.errors import StorageError
from app.core.models import Run, RunStatus
from app.core.periodic import Backoff, Lead, Periodic
from app.core.telemetry import WEBHOOKS
from app.db.engine import Database
from app.db.run_store import RunStore
from app.db.webhook_store import Delivery, WebhookStore
from tailrun import VERSION

LOOK_EVERY_S = 1.0
_AT_ONCE, _A_HOST, _LOOK_AT = 16, 4, 500
_RETRY_BASE_S, _RETRY_MAX_S = 5.0, 3600.0
_MARGIN_S = 20
"""How much longer than a try may take a delivery is taken for; then another worker takes it."""

log = structlog.get_logger()


class Webhooks:
    """One worker's part in the deliveries."""

    def __init__(
        self,
        store: WebhookStore,
        runs: RunStore,
        sender: WebhookSender,
        settings: WebhookSettings,
        *,
        backoff: Backoff,
        clock: Callable[[], int],
    ) -> None:
        self._store, self._runs, self._sender, self._settings = store, runs, sender, settings
        self._taken_us = int((settings.timeout_s + _MARGIN_S) * 1_000_000)
        self._backoff, self._clock = backoff, clock
        self._sending: dict[asyncio.Task[None], str] = {}
        self._on_room: Callable[[], None] = lambda: None

    def periodic(self, lead: Lead) -> Periodic:
        """Return the work that one worker does: look each second, and at once when there is room again."""
        work = Periodic("webhooks", LOOK_EVERY_S, self.send_due, lead=lead)
        self._on_room = work.soon
        return work

    async def close(self) -> None:
        """Break off what is being sent: another worker sends it again."""
        for task in (sending := tuple(self._sending)):
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)

    async def send_due(self) -> int:
        """Begin to send as many due deliveries as there is room for; return how many."""
        began = 0
        room = _AT_ONCE - len(self._sending)
        busy = Counter(self._sending.values())
        for delivery in await self._store.due(self._clock(), _LOOK_AT) if room > 0 else ():
            host = _host(delivery.url)
            if busy[host] >= _A_HOST:  # a receiver that does not answer delays no other one's
                continue
            until = self._clock() + self._taken_us
            if await self._store.take(delivery, until):
                task = asyncio.create_task(self._deliver(delivery, until))
                self._sending[task] = host
                task.add_done_callback(self._sent)
                busy[host] += 1
                began += 1
            if began >= room:
                break
        return began

    def _sent(self, task: asyncio.Task[None]) -> None:
        if len(self._sending) >= _AT_ONCE:
            self._on_room()
        del self._sending[task]

    async def _deliver(self, delivery: Delivery, until: int) -> None:
        try:
            run = await self._runs.get(delivery.run_id)
            if run is None or not (run.status.terminal or run.status is RunStatus.WAITING):
                return  # its wait is over, and the delivery of it deleted
            at, began = self._clock(), time.monotonic()
            sent = await self._sender.send(delivery.url, message_id(run), payload(run, delivery.created_at))
            took_ms = round((time.monotonic() - began) * 1000)
            tried = {"at": at, "status": sent.status, "error": sent.error, "ms": took_ms}
            await self._settle(delivery, until, sent, tried)
        except StorageError as error:
            log.warning("a webhook's try is not written down, it is tried again", error=str(error))

    async def _settle(self, delivery: Delivery, until: int, sent: Sent, tried: dict[str, Any]) -> None:
        over = delivery.attempts + 1 >= self._settings.max_attempts or sent.unwanted
        next_at = None
        if not (sent.delivered or over):
            next_at = self._clock() + self._backoff.delay_us(delivery.attempts)
        kept = await self._store.settle(delivery, until, tried, next_at=next_at, delivered=sent.delivered)
        if not kept:
            return
        outcome = "delivered" if sent.delivered else "gave_up" if over else "retried"
        WEBHOOKS.labels(outcome).inc()
        about = {"run_id": delivery.run_id, "status": sent.status, "error": sent.error}
        (log.info if sent.delivered else log.warning)(f"webhook {outcome}", **about)


def open_webhooks(
    settings: WebhookSettings, db: Database, runs: RunStore, *, clock: Callable[[], int]
) -> Webhooks | None:
    """Make what the settings ask for; None: no secret is set, so nothing is sent."""
    if settings.secret is None:
        return None
    sender = WebhookSender(
        settings.secret.get_secret_value(),
        timeout_s=settings.timeout_s,
        allow_private=settings.allow_private,
    )
    dice = Random()  # noqa: S311 - jitter
    pauses = Backoff(_RETRY_BASE_S, _RETRY_MAX_S, dice)
    return Webhooks(
        WebhookStore(db),
        runs,
        sender,
        settings,
        backoff=pauses,
        clock=clock,
    )


def message_id(run: Run) -> str:
    """Return the `webhook-id`, the same for every try: a run has one end, and one wait after an attempt."""
    return f"msg_{run.run_id}" if run.status.terminal else f"msg_{run.run_id}_{run.attempt}"


def payload(run: Run, since: int) -> bytes:
    """Return the body: which run ended, when, and how; or what it waits for, and since when."""
    moments = ("created_at", "started_at", "ended_at")
    data: dict[str, Any] = {
        "run_id": run.run_id,
        "user_id": run.user_id,
        "kind": run.kind,
        "project": run.project,
        "type": run.type,
        "labels": run.labels,
        "status": run.status,
        "waiting_for": run.waiting_for,
        "exit_code": run.exit_code,
        "error": run.error,
        "attempt": run.attempt,
        "log_lines": run.log_lines,
        **{name: _moment(getattr(run, name)) for name in moments},
    }
    at = since if run.ended_at is None else run.ended_at
    return orjson.dumps({"type": f"run.{run.status}", "timestamp": format_ts(at), "data": data})


def _host(url: str) -> str:
    """Return the host that is asked; "" for what is no address, which the sender finds as well."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _moment(us: int | None) -> str | None:
    return None if us is None else format_ts(us)


_MOST_ANSWER = 64 * 1024
_MOST_ADDRESSES = 8
_PREFIX = "whsec_"

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Sent:
    """How a try went: the HTTP status, or why there is none. Delivered means 2xx."""

    status: int | None = None
    error: str | None = None

    @property
    def delivered(self) -> bool:
        """Whether the receiver took it."""
        return self.status is not None and 200 <= self.status < 300  # noqa: PLR2004 - HTTP's success

    @property
    def unwanted(self) -> bool:
        """Whether the receiver never wants it: 410 Gone."""
        return self.status == 410  # noqa: PLR2004 - 410 Gone


class EndpointRefused(Exception):
    """The host's address is not one that webhooks go to."""


def signatures(secrets: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature` for every secret, separated by spaces: so secrets can be rotated."""
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    made = (hmac.digest(_key(secret), signed, hashlib.sha256) for secret in secrets.split())
    return " ".join(f"v1,{base64.b64encode(one).decode()}" for one in made)


def _key(secret: str) -> bytes:
    """Return the bytes of a secret: what `whsec_` says in base64, else the text itself."""
    if secret.startswith(_PREFIX):
        try:
            return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            pass
    return secret.encode()


async def resolve(host: str, port: int) -> list[str]:
    """Return the host's addresses, as the system's resolver orders them."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


async def _read_out(answer: httpx2.Response) -> None:
    """Take the body, so that the receiver sees no broken connection; of a long one only the beginning."""
    read = 0
    async for piece in answer.aiter_raw():
        read += len(piece)
        if read > _MOST_ANSWER:
            return


class WebhookSender:
    """Sends. `timeout_s` bounds a whole try, from the look-up of the name to the last byte."""

    def __init__(
        self, secrets: str, *, timeout_s: float, allow_private: bool, resolver: Resolve = resolve
    ) -> None:
        self._secrets, self._timeout_s, self._allow_private = secrets, timeout_s, allow_private
        self._resolve = resolver

    async def send(self, url: str, message_id: str, body: bytes) -> Sent:
        """POST `body` and say how it went; redirects are an answer like any other.

        The status is the answer: a body that is cut off, slow or malformed makes it no other.
        """
        answers: list[int] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._post(url, message_id, body, answers.append)
        except TimeoutError:
            error = f"no answer within {self._timeout_s:g} s"
        except EndpointRefused as refusal:
            error = str(refusal)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}"[:300]
        else:
            error = None
        return Sent(status=answers[0]) if answers else Sent(error=error)

    async def _post(self, url: str, message_id: str, body: bytes, answered: Callable[[int], None]) -> None:
        """Send to the first of the host's addresses that takes the connection."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        addresses = await self._addresses(host, port)
        timestamp = now_us() // 1_000_000
        headers = {
            "host": parts.netloc.rpartition("@")[2],
            "content-type": "application/json",
            "user-agent": f"Tailrun/{VERSION}",
            "accept-encoding": "identity",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signatures(self._secrets, message_id, timestamp, body),
        }
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            there = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            target = parts._replace(netloc=there, fragment="").geturl()
            share = max(0.1, deadline - loop.time()) / left
            timeout = httpx2.Timeout(self._timeout_s, connect=share)
            named = {"sni_hostname": host}
            try:
                async with (
                    httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout) as client,
                    client.stream("POST", target, content=body, headers=headers, extensions=named) as answer,
                ):
                    answered(answer.status_code)
                    await _read_out(answer)
                    return
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if left == 1:
                    raise

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses to connect to; EndpointRefused if any that the name has is not public."""
        addresses = await self._resolve(host, port)
        if not addresses:
            raise OSError(f"{host} has no address")
        if not self._allow_private:
            for address in addresses:
                if not is_public(ip_address(address)):
                    raise EndpointRefused(
                        f"{host} is {address}, not a public address (WEBHOOK_ALLOW_PRIVATE)"
                    )
        return addresses[:_MOST_ADDRESSES]
