"""Which addresses a webhook may go to: checked at the POST as far as a URL tells, and again at each delivery.

Who may make a run could otherwise have a worker send requests to what only it can reach: its own
machine, its network, the metadata service of its cloud. A name is judged by what it resolves to, at
the moment of connecting, for it may resolve to something else than before.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from app.core.address_ranges import Address, is_public, literal
from app.core.errors import Unprocessable

MAX_URL = 2000
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_.])?|[0-9a-f:.]{2,45}")
"""Names as resolvers take them, with a dot at the end or without, and IPv6 addresses; no escapes."""
_NEAR_DOMAINS = frozenset({"localhost", "localdomain"})
_NEAR_NAMES = frozenset({"ip6-localhost", "ip6-loopback"})


def checked(url: str, *, allow_private: bool) -> str:
    """Return the URL if a webhook may be asked for with it.

    Raises:
        Unprocessable: it is no http(s) URL, holds a password, spells an address in a way of its own,
            or names an address that is refused.
    """
    parts = _split(url)
    host = (parts.hostname or "").lower()
    if "@" in parts.netloc:
        raise Unprocessable("webhook_url must not hold a name or password.")
    address = _address(host)
    near = _is_this_machine(host.removesuffix(".")) if address is None else not is_public(address)
    if near and not allow_private:
        raise Unprocessable(f"webhook_url: {host} is not a public address (WEBHOOK_ALLOW_PRIVATE).")
    return url


def _address(host: str) -> Address | None:
    error = Unprocessable(
        "webhook_url: its host is no name and no address; write an IPv4 address as four decimal numbers, "
        "an IPv6 address in brackets and without a scope."
    )
    if not _HOST.fullmatch(host) or ".." in host:
        raise error
    try:
        return literal(host)
    except ValueError:
        raise error from None


def _is_this_machine(name: str) -> bool:
    return name.rpartition(".")[2] in _NEAR_DOMAINS or name in _NEAR_NAMES


def _split(url: str) -> SplitResult:
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise Unprocessable(f"webhook_url must be a URL of at most {MAX_URL} ASCII characters.")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        usable = usable and (":" in (parts.hostname or "")) == ("[" in parts.netloc)
    except ValueError:
        usable = False
    if not usable:
        raise Unprocessable("webhook_url must begin with https:// or http:// and name a host.")
    return urlsplit(url)
