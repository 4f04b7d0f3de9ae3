"""One webhook, sent once: signed, to the very address that was checked, bounded in time and size.

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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

import httpx2

from app import VERSION
from app.address_ranges import is_public
from app.clock import now_us

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


class Refused(Exception):
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
        except Refused as refusal:
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
        """Return the addresses to connect to; Refused if any that the name has is not public."""
        addresses = await self._resolve(host, port)
        if not addresses:
            raise OSError(f"{host} has no address")
        if not self._allow_private:
            for address in addresses:
                if not is_public(ip_address(address)):
                    raise Refused(f"{host} is {address}, not a public address (WEBHOOK_ALLOW_PRIVATE)")
        return addresses[:_MOST_ADDRESSES]
